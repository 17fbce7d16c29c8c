"""Relative flatness of PyTorch Lightning classifiers at every validation epoch."""

from lightning_flatness.callbacks import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.metrics import (
    AttackSuccessRate,
    AttackTrajectory,
    ConfidenceFlatness,
    HeadScaling,
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
    "HeadScalingMonitor",
    "LocalRobustnessMonitor",
    "RelativeFlatnessMonitor",
    # metrics
    "AttackSuccessRate",
    "AttackTrajectory",
    "ConfidenceFlatness",
    "HeadScaling",
    "HeadTopEigenvalue",
    "LocalRobustnessBound",
    "LossBoundCheck",
    "RelativeFlatness",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
