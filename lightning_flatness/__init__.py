"""Relative flatness of PyTorch Lightning classifiers at every validation epoch."""

from lightning_flatness.callbacks import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.metrics import (
    AttackSuccessRate,
    AttackTrajectory,
    HeadTopEigenvalue,
    LocalRobustnessBound,
    LossBoundCheck,
    RelativeFlatness,
    RobustAccuracy,
    RobustAccuracyCurve,
)

__all__ = [  # noqa: RUF022 - grouped
    # callbacks
    "AttackMonitor",
    "AttackTrajectoryMonitor",
    "LocalRobustnessMonitor",
    "RelativeFlatnessMonitor",
    # metrics
    "AttackSuccessRate",
    "AttackTrajectory",
    "HeadTopEigenvalue",
    "LocalRobustnessBound",
    "LossBoundCheck",
    "RelativeFlatness",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
