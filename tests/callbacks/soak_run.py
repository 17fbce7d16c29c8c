"""A process that fits for 300 epochs with every monitor on, and prints what it used on the way."""

import ctypes
import gc
import json
import sys
import threading
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from tests.callbacks.conftest import StepNet, fit, loader

EPOCHS, WARM_UP = 300, 100
BALL = {"epsilon": 0.1, "lower": None, "upper": None, "summary": False}


class Forgetful(StepNet):
    """Keeps nothing of what it has seen."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def used(module: nn.Module) -> dict[str, float]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {
        "mebibytes": next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS")),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()),
        "tensors": sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()),
    }


class Census(Callback):
    """Counts at the end of two epochs."""

    def __init__(self) -> None:
        self.counted: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 in {WARM_UP, EPOCHS}:
            self.counted[trainer.current_epoch + 1] = used(pl_module)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    census = Census()
    monitors = [
        RelativeFlatnessMonitor(summary=False),
        AttackMonitor(**BALL),
        LocalRobustnessMonitor(**BALL, lipschitz_samples=4),
        AttackTrajectoryMonitor(**BALL, steps=4),
        HeadScalingMonitor(**BALL, scales=(1.0, 10.0), steps=3),
    ]
    fit(Forgetful(), *monitors, census, train=loader(8), val=loader(8, seed=1), max_epochs=EPOCHS)
    lengths = [len(monitor.history()) for monitor in monitors]
    early, late = census.counted[WARM_UP], census.counted[EPOCHS]
    sys.stdout.write(json.dumps({"early": early, "late": late, "lengths": lengths}))


if __name__ == "__main__":
    main()
