"""Print what a validation with each monitor sends; ``torchrun --nproc-per-node 2 -m tests.callbacks.traffic_run``.

Collectives and bytes that one process gives to them, by the number of samples, beyond those of a validation without
monitors. The strategy is DDP.
"""

import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from tests.callbacks.conftest import CLASSES, DIM, Net, loader, trainer
from tests.callbacks.traffic import Traffic

FEATURES = 512
SAMPLES = (512, 1024)
BALL: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
MONITORS: dict[str, Any] = {
    "none": lambda: [],
    "RelativeFlatnessMonitor": lambda: [RelativeFlatnessMonitor()],
    "RelativeFlatnessMonitor(top_eigenvalue_samples=0)": lambda: [RelativeFlatnessMonitor(top_eigenvalue_samples=0)],
    "LocalRobustnessMonitor": lambda: [LocalRobustnessMonitor(0.1, lipschitz="certified", **BALL)],
    "AttackMonitor(masking=False)": lambda: [AttackMonitor(0.1, masking=False, **BALL)],
    "AttackMonitor(masking_samples=16)": lambda: [AttackMonitor(0.1, masking_samples=16, **BALL)],
    "AttackTrajectoryMonitor": lambda: [AttackTrajectoryMonitor(0.1, max_samples=64, **BALL)],
    "HeadScalingMonitor": lambda: [HeadScalingMonitor(**BALL)],
    "HeadScalingMonitor(0.1)": lambda: [HeadScalingMonitor(0.1, attack_samples=16, **BALL)],
}


def sent(name: str, samples: int) -> tuple[int, int]:
    """Collectives and bytes that this process sends in one validation."""
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(DIM, FEATURES), nn.ReLU()), nn.Linear(FEATURES, CLASSES))
    runner = trainer(*MONITORS[name](), devices=2, strategy=DDPStrategy(timeout=timedelta(seconds=300)))
    with Traffic() as traffic:
        runner.validate(net, loader(samples, batch_size=128), verbose=False)
    return traffic.calls.total(), traffic.bytes


def measure(folder: Path) -> None:
    """Write what every monitor adds to a validation without any."""
    found = {name: {count: sent(name, count) for count in SAMPLES} for name in MONITORS}
    nothing = found.pop("none")
    added = {
        name: {
            count: [mine - other for mine, other in zip(of_samples[count], nothing[count], strict=True)]
            for count in SAMPLES
        }
        for name, of_samples in found.items()
    }
    (folder / f"traffic.{torch.distributed.get_rank()}.json").write_text(json.dumps(added))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        measure(Path(place))
        if torch.distributed.get_rank() == 0:
            print(Path(place, "traffic.0.json").read_text().replace("}, ", "},\n"))  # noqa: T201
    torch.distributed.destroy_process_group()
