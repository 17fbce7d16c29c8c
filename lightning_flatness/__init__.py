"""Relative flatness of PyTorch Lightning classifiers at every validation epoch."""

from lightning_flatness.callbacks import AttackMonitor, LocalRobustnessMonitor, RelativeFlatnessMonitor
from lightning_flatness.metrics import (
    AttackSuccessRate,
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
    "LocalRobustnessMonitor",
    "RelativeFlatnessMonitor",
    # metrics
    "AttackSuccessRate",
    "HeadTopEigenvalue",
    "LocalRobustnessBound",
    "LossBoundCheck",
    "RelativeFlatness",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
