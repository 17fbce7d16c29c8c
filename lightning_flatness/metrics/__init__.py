"""torchmetrics over the functional core."""

from lightning_flatness.metrics.attack_success import AttackSuccessRate
from lightning_flatness.metrics.attack_trajectory import AttackTrajectory
from lightning_flatness.metrics.confidence_flatness import ConfidenceFlatness, JointHistogram, detection_scores
from lightning_flatness.metrics.flatness import Histogram, RelativeFlatness
from lightning_flatness.metrics.head_scaling import HeadScaling
from lightning_flatness.metrics.local_robustness import LocalRobustnessBound
from lightning_flatness.metrics.loss_bound_check import LossBoundCheck
from lightning_flatness.metrics.robust_accuracy import RobustAccuracy, RobustAccuracyCurve
from lightning_flatness.metrics.top_eigenvalue import HeadTopEigenvalue

__all__ = [  # noqa: RUF022 - grouped
    # flatness
    "ConfidenceFlatness",
    "HeadScaling",
    "HeadTopEigenvalue",
    "Histogram",
    "JointHistogram",
    "RelativeFlatness",
    "detection_scores",
    # bounds
    "LocalRobustnessBound",
    "LossBoundCheck",
    # attacks
    "AttackSuccessRate",
    "AttackTrajectory",
    "RobustAccuracy",
    "RobustAccuracyCurve",
]
