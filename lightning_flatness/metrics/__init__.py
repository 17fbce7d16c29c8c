"""torchmetrics over the functional core."""

from lightning_flatness.metrics.attack_success import AttackSuccessRate
from lightning_flatness.metrics.attack_trajectory import AttackTrajectory
from lightning_flatness.metrics.flatness import Histogram, RelativeFlatness
from lightning_flatness.metrics.local_robustness import LocalRobustnessBound
from lightning_flatness.metrics.loss_bound_check import LossBoundCheck
from lightning_flatness.metrics.robust_accuracy import RobustAccuracy, RobustAccuracyCurve
from lightning_flatness.metrics.top_eigenvalue import HeadTopEigenvalue

__all__ = [  # noqa: RUF022 - grouped
    # flatness
    "HeadTopEigenvalue",
    "Histogram",
    "RelativeFlatness",
    # bounds
    "LocalRobustnessBound",
    "LossBoundCheck",
    # attacks
    "AttackSuccessRate",
    "AttackTrajectory",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
