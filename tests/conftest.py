"""What all tests share."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Processes that test side by side share the cores.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of functions, attacks, metrics, monitors: cpu, cuda:1")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """What tensors are moved to; no default device, which would hide what the library leaves on another one."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(autouse=True)
def _own_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offline, with no account and no run of another test; what WandbLogger writes into the variables is put back."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path_factory.getbasetemp() / "no-netrc"))
    yield
    if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
        wandb.finish()


@contextmanager
def _unchecked_shapes() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)  # noqa: FBT003 - its signature
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)  # noqa: FBT003 - its signature


@pytest.fixture
def unchecked_shapes() -> AbstractContextManager[None]:
    """Let wrong shapes through to the library's own checks, as they are outside the tests."""
    return _unchecked_shapes()
