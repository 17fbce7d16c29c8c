"""Training with all monitors is, to the bit and at every hook, what it is without any."""
# The signatures of steps are Lightning's.

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.functional._numerics import _HAS_FP32_PRECISION, full_precision
from lightning_flatness.metrics import AttackTrajectory, HeadScaling, LocalRobustnessBound, RelativeFlatness
from lightning_flatness.metrics._named_means import NamedMeans
from tests.callbacks.conftest import DIM, HIDDEN, Spy, loader, trainer
from tests.callbacks.trace import (
    Noisy,
    Talkative,
    Trace,
    augmented,
    differences,
    draws,
    monitors,
    seed_all,
    settings_of_torch,
    without_certificate,
)

pytestmark = [
    pytest.mark.slow,
    # Eight hidden units and 12 samples of random classes: attacks do fail here.
    pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch"),
]

NO_SANITY = {"num_sanity_val_steps": 0}


@pytest.fixture(autouse=True)
def _no_type_checker(unchecked_shapes: AbstractContextManager[None]) -> Iterator[None]:
    """Without beartype, which draws from Python's random numbers to look into sequences."""
    with unchecked_shapes:
        yield


def run(
    watching: Callable[[], list[Monitor]] | None,
    *others: Callback,
    settings: dict[str, Any] | None = None,
    workers: dict[str, Any] | None = None,
    net: Callable[[], LightningModule] = Noisy,
    ckpt_path: Any = None,
) -> list[dict[str, Any]]:
    """Train, and return all that is left at every hook; what makes the monitors is itself watched."""
    seed_all()
    module, trace = net(), Trace()
    made = [] if watching is None else watching()
    runner = trainer(*others, *made, trace, **{"max_epochs": 2, **NO_SANITY, **(settings or {})})
    runner.fit(module, augmented(**(workers or {})), loader(12, 1, 6), ckpt_path=ckpt_path)
    assert all(monitor.history() for monitor in made)
    return trace.end(module)


class Compiled(Noisy):
    """The network is compiled inside the module, before the Trainer sees it."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        torch.compiler.reset()
        self.body.compile(backend=backend)


_LATE = {"max_epochs": 3, "val_check_interval": 0.5}
_NEEDS_COMPILER = pytest.mark.skipif(not any(map(which, ("cc", "gcc", "clang"))), reason="inductor needs a C compiler")
_DELAYED = {"accumulate_grad_batches": 3, "val_check_interval": 0.25, "max_epochs": 1}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({}, id="plain"),
        pytest.param({"settings": {"num_sanity_val_steps": 2}}, id="sanity check"),
        pytest.param({"net": Talkative, "watching": without_certificate}, id="talkative"),
        pytest.param({"settings": {**_DELAYED, "precision": "bf16-mixed"}}, id="in the accumulation, bf16-mixed"),
        pytest.param({"settings": {"precision": "bf16-true", "gradient_clip_val": 0.1}}, id="bf16-true, clipped norm"),
        pytest.param(
            {"settings": {"precision": "64-true", "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
            id="64-true, clipped values",
        ),
        pytest.param({"settings": {"deterministic": True}}, id="deterministic"),
        pytest.param({"settings": {"detect_anomaly": True}}, id="anomalies"),
        pytest.param({"others": lambda: [EMAWeightAveraging(decay=0.9)]}, id="EMA"),
        pytest.param({"others": lambda: [WeightAveraging()]}, id="averaging"),
        pytest.param({"others": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)]}, id="SWA"),
        pytest.param({"workers": {"num_workers": 2}}, id="workers"),
        pytest.param({"workers": {"num_workers": 2, "persistent_workers": True}}, id="persistent workers"),
        pytest.param({"net": partial(Compiled, "aot_eager")}, id="aot_eager"),
        pytest.param(
            {"net": partial(Compiled, "inductor")},
            id="inductor",
            marks=[_NEEDS_COMPILER, pytest.mark.filterwarnings("ignore")],  # inductor's differ between machines
        ),
    ],
)
def test_training_is_bit_for_bit_the_same(case: dict[str, Any]) -> None:
    arguments = {name: value for name, value in case.items() if name not in {"others", "watching"}}
    others = case.get("others", list)
    without = run(None, *others(), **arguments)
    assert differences(without, run(case.get("watching", monitors), *others(), **arguments)) == []


class Break:
    """Raises in the second epoch, after all the damage that a function of the user's can do."""

    def __init__(self) -> None:
        self.is_on = False

    def follow(self) -> Callback:
        return Spy("on_train_epoch_start", lambda runner, _: setattr(self, "is_on", runner.current_epoch == 1))

    def parts(self, batch: Any) -> Any:
        return self.now(batch)

    def logits(self, module: LightningModule, inputs: Tensor) -> Tensor:
        if self.is_on:
            draws()
            module.train().requires_grad_(requires_grad=False)
            self.now(None)
        return module(inputs)

    def now(self, value: Any) -> Any:
        if self.is_on:
            raise RuntimeError("broken")
        return value

    def in_compute(self, patch: pytest.MonkeyPatch) -> None:
        for kind in (AttackTrajectory, HeadScaling, LocalRobustnessBound, NamedMeans, RelativeFlatness):
            patch.setattr(kind, "compute", lambda metric, compute=kind.compute: self.now(compute(metric)))


@pytest.mark.parametrize("place", ["observe", "attack", "compute"])
def test_failing_monitor_leaves_nothing_behind(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, made = Break(), list[Monitor]()
    settings: dict[str, Any] = {"observe": {"inputs_and_targets": broken.parts}, "attack": {"logits_fn": broken.logits}}
    if place == "compute":
        broken.in_compute(monkeypatch)

    def watching() -> list[Monitor]:
        made.extend(monitors(on_error="warn", **settings.get(place, {})))
        return made

    without = run(None, broken.follow(), settings=_LATE)
    with pytest.warns(UserWarning, match="leaves out that point: RuntimeError: broken"):
        beside = run(watching, broken.follow(), settings=_LATE)
    assert differences(without, beside) == []
    failed = made[:-1] if place == "attack" else made
    assert [[row["epoch"] for row in monitor.history()] for monitor in failed] == [[0, 0, 2, 2]] * len(failed)


def resumed(
    place: Path, first: Callable[[], list[Monitor]] | None = None, second: Callable[[], list[Monitor]] | None = None
) -> list[dict[str, Any]]:
    saving = ModelCheckpoint(place, filename="last")
    run(first, saving, settings={"enable_checkpointing": True, "max_epochs": 1})
    return run(second, ckpt_path=place / "last.ckpt")


@pytest.fixture(scope="module")
def resumed_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], list[dict[str, Any]]]:
    """A resumed training without monitors, which the first test that asks for it runs."""

    @cache
    def made() -> list[dict[str, Any]]:
        found = resumed(tmp_path_factory.mktemp("without"))
        assert found[0]["schedule"] != run(None)[0]["schedule"]  # it did go on
        return found

    return made


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("first", "second"), [(monitors, monitors), (None, monitors), (monitors, None)])
def test_resumed_training_is_bit_for_bit_the_same(
    first: Callable[[], list[Monitor]] | None,
    second: Callable[[], list[Monitor]] | None,
    resumed_without: Callable[[], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    assert differences(resumed_without(), resumed(tmp_path, first, second)) == []


def _write(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.flatten()[0] += 1e-6


DISTURBANCES: dict[str, Callable[[Trainer, LightningModule], Any]] = {
    "torch random": lambda *_: torch.rand(1),
    "numpy random": lambda *_: np.random.random(),
    "python random": lambda *_: random.random(),  # noqa: S311
    "weight head.weight": lambda _, net: _write(net.head.weight),
    "buffer body.1.running_mean": lambda _, net: _write(net.body[1].running_mean),
    "grad body.0.weight": lambda _, net: setattr(net.body[0].weight, "grad", torch.zeros(HIDDEN, DIM)),
    "requires_grad body.4.bias": lambda _, net: net.body[4].bias.requires_grad_(),
    "training body.3": lambda _, net: net.body[3].train(),
    "attributes head": lambda _, net: vars(net.head).update(left=1),
    "hooks": lambda _, net: net.body[0].register_forward_pre_hook(lambda *_: None),
    "optimizer": lambda runner, _: [_write(state["exp_avg"]) for state in runner.optimizers[0].state.values()],
    "schedule": lambda runner, _: vars(runner.lr_scheduler_configs[0].scheduler).update(T_max=21),
    "metrics": lambda _, net: net.log("val_loss", 0.0),
    "default dtype": lambda *_: torch.set_default_dtype(torch.float64),
    "deterministic": lambda *_: torch.use_deterministic_algorithms(True),  # noqa: FBT003 - its signature
    "cudnn": lambda *_: setattr(torch.backends.cudnn, "benchmark", True),
    "matmul": lambda *_: torch.set_float32_matmul_precision("medium"),
    "threads": lambda *_: torch.set_num_threads(2),
    "grad mode": lambda *_: torch.set_grad_enabled(True),
}


def _put_settings_back() -> None:
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def _settings_put_back() -> Iterator[None]:
    _put_settings_back()  # torch calls some of them otherwise as long as nobody has set them
    yield
    _put_settings_back()


SHORT = {"max_epochs": 1, "log_every_n_steps": 2}


@cache
def undisturbed() -> list[dict[str, Any]]:
    return run(None, settings=SHORT)


@pytest.mark.usefixtures("_settings_put_back")
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_comparison_notices_a_disturbance(kind: str) -> None:
    def disturb(runner: Trainer, net: LightningModule, *_: Any) -> None:
        if runner.global_step == 4:
            DISTURBANCES[kind](runner, net)

    found = differences(undisturbed(), run(None, Spy("on_validation_epoch_end", disturb), settings=SHORT))
    assert any(where.endswith(f": {kind}") for where in found)


@pytest.mark.skipif(not _HAS_FP32_PRECISION, reason="torch 2.9 has these settings")
@pytest.mark.usefixtures("_settings_put_back")
def test_allowed_tf32_is_put_back() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    before = settings_of_torch()
    with full_precision(torch.device("cpu")):
        assert settings_of_torch() != before
    assert settings_of_torch() == before
