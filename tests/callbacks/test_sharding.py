"""Which modules count as sharded, and which strategies are refused."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from lightning_flatness.callbacks._sharding import is_sharded, unsharded, without_hooks
from tests.callbacks.conftest import Net, trainer


@pytest.mark.parametrize("monitor", [RelativeFlatnessMonitor, AttackMonitor])
@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_modules_in_pieces_are_refused_before_training(strategy: Any, monitor: Any) -> None:
    runner = trainer()
    runner.strategy.__class__ = strategy  # which cannot be made on a CPU
    words = f"{monitor.__name__} cannot measure a module sharded by {strategy.__name__}; use ModelParallelStrategy with"
    with pytest.raises(ValueError, match=words):
        monitor().setup(runner, Net(), "fit")


def test_ordinary_modules_stay_as_they_are() -> None:
    net = Net()
    before = list(net.parameters())
    assert not is_sharded(net)
    with without_hooks(net), unsharded(net):
        assert all(one is other for one, other in zip(net.parameters(), before, strict=True))


def test_a_torch_that_hooks_otherwise_is_an_error() -> None:
    """Hooks that are not found would wait for other processes in the midst of an attack."""
    layer: Any = nn.Linear(2, 2)
    layer.__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    words = f"The hooks of `fully_shard` of torch {torch.__version__} are not known".replace("+", r"\+")
    with pytest.raises(ValueError, match=words), without_hooks(nn.Sequential(layer)):
        pass


def test_hooks_of_others_may_have_no_module() -> None:
    layer: Any = nn.Linear(2, 2)
    layer.__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    builtin = [].append
    assert builtin.__module__ is None
    layer.register_forward_hook(builtin)
    with pytest.raises(ValueError, match="The hooks of `fully_shard` of torch"), without_hooks(layer):
        pass


@pytest.mark.slow  # imports everything anew
def test_torch_need_not_have_fsdp() -> None:
    program = """
import sys
sys.modules["torch.distributed.fsdp"] = None
import torch
from lightning_flatness.callbacks._sharding import is_sharded
assert not is_sharded(torch.nn.Linear(2, 2))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)  # noqa: S603 - our own program
