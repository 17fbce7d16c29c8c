"""The mathematics: pure functions of tensors."""

from lightning_flatness.functional._checks import FlatnessVariant
from lightning_flatness.functional.flatness import (
    FlatnessFactors,
    feature_hessian_trace,
    flatness_factors,
    head_top_eigenvalue,
    relative_flatness,
)

__all__ = [
    "FlatnessFactors",
    "FlatnessVariant",
    "feature_hessian_trace",
    "flatness_factors",
    "head_top_eigenvalue",
    "relative_flatness",
]
