"""Relative flatness of PyTorch Lightning classifiers at every validation epoch."""

from lightning_flatness.callbacks import AttackMonitor, AttackTrajectoryMonitor, RelativeFlatnessMonitor
from lightning_flatness.metrics import (
    AttackSuccessRate,
    AttackTrajectory,
    HeadTopEigenvalue,
    RelativeFlatness,
    RobustAccuracy,
    RobustAccuracyCurve,
)

__all__ = [  # noqa: RUF022 - grouped
    # callbacks
    "AttackMonitor",
    "AttackTrajectoryMonitor",
    "RelativeFlatnessMonitor",
    # metrics
    "AttackSuccessRate",
    "AttackTrajectory",
    "HeadTopEigenvalue",
    "RelativeFlatness",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
