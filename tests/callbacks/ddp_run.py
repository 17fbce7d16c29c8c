"""One of several processes that train together; started by ``test_distributed.py``.

Its arguments are the folder to write to and the scenarios to run, one after the other.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import Net, TwoViews, loader, samples, trainer
from tests.callbacks.traffic_run import measure

ODD = 129
PROCESSES = int(os.environ.get("WORLD_SIZE", "2"))
"""Lightning takes the variable away behind the first run."""
GROUPS = tuple(f"{group}/" for group in keys.GROUPS)


class Batches(BatchSampler):
    """A user's own way to make batches."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from super().__iter__()


def own_batches(count: int) -> DataLoader[Any]:
    data = samples(count, seed=1)
    return DataLoader(data, batch_sampler=Batches(SequentialSampler(data), 8, drop_last=False))


def attack_monitor(**settings: Any) -> AttackMonitor:
    bounds: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
    return AttackMonitor(0.1, max_time_fraction=inf, epsilons=[0.05, 0.2], masking_samples=30, **bounds, **settings)


def bound_monitor(**settings: Any) -> LocalRobustnessMonitor:
    return LocalRobustnessMonitor(0.1, lower=-5.0, upper=5.0, **settings)


def trajectory_monitor(**settings: Any) -> AttackTrajectoryMonitor:
    few: dict[str, Any] = {"path": ["attack", "noise", "random"], "steps": 5, "max_samples": 77}
    return AttackTrajectoryMonitor(0.3, lower=-5.0, upper=5.0, **{**few, **settings})


def scaling_monitor(**settings: Any) -> HeadScalingMonitor:
    return HeadScalingMonitor(0.2, scales=(0.5, 1.0, 100.0), lower=-5.0, upper=5.0, **settings)


class FailsOnOneProcess(RelativeFlatnessMonitor):
    def _observe(self, observation: Any) -> None:
        super()._observe(observation)
        if torch.distributed.get_rank() == 1 and self.runner.current_epoch == 1:
            raise RuntimeError("out of memory")

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.runner = trainer


class AttackFailsOnOneProcess(AttackMonitor):
    def _measure(self, step: Any) -> None:
        super()._measure(step)
        if step.trainer.global_rank == 1 and step.trainer.current_epoch == 1:
            raise RuntimeError("out of memory")


# Scenario → module, monitor and validation data.
SCENARIOS: dict[str, Callable[[], tuple[Net, Monitor, DataLoader[Any]]]] = {
    "estimated": lambda: (Net(), bound_monitor(lipschitz_samples=31), loader(ODD, seed=1)),
    "certified": lambda: (Net(), bound_monitor(lipschitz="certified"), loader(ODD, seed=1)),
    "no_estimate": lambda: (Net(), bound_monitor(lipschitz_samples=1), loader(ODD, seed=1)),
    "paths": lambda: (Net(), trajectory_monitor(), loader(ODD, seed=1)),
    "one_followed": lambda: (Net(), trajectory_monitor(max_samples=1), loader(ODD, seed=1)),
    "scaling": lambda: (Net(), scaling_monitor(attack_samples=31), loader(ODD, seed=1)),
    "one_scaled": lambda: (Net(), scaling_monitor(max_samples=1), loader(ODD, seed=1)),
    "odd": lambda: (Net(), RelativeFlatnessMonitor(), loader(ODD, seed=1)),
    "few": lambda: (Net(), RelativeFlatnessMonitor(), loader(3, seed=1)),
    "max_samples": lambda: (Net(), RelativeFlatnessMonitor(max_samples=11), loader(ODD, seed=1)),
    "own_batches": lambda: (Net(), RelativeFlatnessMonitor(), own_batches(ODD)),
    "views": lambda: (TwoViews(), RelativeFlatnessMonitor(head="head"), loader(ODD, seed=1)),
    "one_sample": lambda: (Net(), RelativeFlatnessMonitor(max_samples=1), loader(ODD, seed=1)),
    "attack": lambda: (Net(), attack_monitor(), loader(ODD, seed=1)),
    "one_attacked": lambda: (Net(), attack_monitor(max_samples=1), loader(ODD, seed=1)),
    "one_attack_fails": lambda: (
        Net(),
        AttackFailsOnOneProcess(0.1, lower=-5.0, upper=5.0, on_error="warn"),
        loader(ODD, seed=1),
    ),
    "one_fails": lambda: (Net(), FailsOnOneProcess(on_error="warn"), loader(ODD, seed=1)),
}


def run(scenario: str, folder: Path) -> None:
    torch.manual_seed(0)
    net, monitor, validation = SCENARIOS[scenario]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        beside = [attack_monitor()] if isinstance(monitor, LocalRobustnessMonitor) else []
        together: dict[str, Any] = {
            "devices": PROCESSES,
            "strategy": DDPStrategy(timeout=timedelta(seconds=300)),
        }
        runner = trainer(monitor, *beside, max_epochs=3, num_sanity_val_steps=0, **together)
        runner.fit(net, loader(16), validation)
    found = {
        "history": monitor.history(),
        "trajectories": monitor.trajectories() if isinstance(monitor, AttackTrajectoryMonitor) else [],
        "logged": {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith(GROUPS)},
        "warnings": [str(one.message) for one in caught],
    }
    torch.save(net.state_dict(), folder / f"{scenario}.{runner.global_rank}.pt")
    (folder / f"{scenario}.{runner.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, *scenarios = sys.argv[1:]
    for name in scenarios:
        measure(Path(place)) if name == "traffic" else run(name, Path(place))
    torch.distributed.destroy_process_group()
