"""The mathematics: pure functions of tensors."""

from lightning_flatness.functional._checks import FlatnessVariant
from lightning_flatness.functional.bounds import BoundMethod, decision_radius, loss_increase_bound, loss_radius
from lightning_flatness.functional.flatness import (
    FlatnessFactors,
    feature_hessian_trace,
    flatness_factors,
    relative_flatness,
)
from lightning_flatness.functional.head_scaling import ScaledHead, scale_head
from lightning_flatness.functional.lipschitz import (
    InputNorm,
    certified_lipschitz,
    displacement_lipschitz,
    local_lipschitz,
)
from lightning_flatness.functional.loss_change import loss_change
from lightning_flatness.functional.top_eigenvalue import head_top_eigenvalue
from lightning_flatness.functional.trajectory import TrajectoryPoints

__all__ = [
    "BoundMethod",
    "FlatnessFactors",
    "FlatnessVariant",
    "InputNorm",
    "ScaledHead",
    "TrajectoryPoints",
    "certified_lipschitz",
    "decision_radius",
    "displacement_lipschitz",
    "feature_hessian_trace",
    "flatness_factors",
    "head_top_eigenvalue",
    "local_lipschitz",
    "loss_change",
    "loss_increase_bound",
    "loss_radius",
    "relative_flatness",
    "scale_head",
]
