"""The mathematics: pure functions of tensors."""

from lightning_flatness.functional._checks import FlatnessVariant
from lightning_flatness.functional.bounds import BoundMethod, decision_radius, loss_increase_bound, loss_radius
from lightning_flatness.functional.flatness import (
    FlatnessFactors,
    feature_hessian_trace,
    flatness_factors,
    head_top_eigenvalue,
    relative_flatness,
)

__all__ = [
    "BoundMethod",
    "FlatnessFactors",
    "FlatnessVariant",
    "decision_radius",
    "feature_hessian_trace",
    "flatness_factors",
    "head_top_eigenvalue",
    "loss_increase_bound",
    "loss_radius",
    "relative_flatness",
]
