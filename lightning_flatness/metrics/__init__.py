"""torchmetrics over the functional core."""

from lightning_flatness.metrics.flatness import HeadTopEigenvalue, Histogram, RelativeFlatness

__all__ = ["HeadTopEigenvalue", "Histogram", "RelativeFlatness"]
