"""Relative flatness of PyTorch Lightning classifiers at every validation epoch."""

from lightning_flatness.callbacks import RelativeFlatnessMonitor
from lightning_flatness.metrics import HeadTopEigenvalue, RelativeFlatness

__all__ = [  # noqa: RUF022 - grouped
    # callbacks
    "RelativeFlatnessMonitor",
    # metrics
    "HeadTopEigenvalue",
    "RelativeFlatness",
]
