"""torchmetrics over the functional core."""

from lightning_flatness.metrics.flatness import Histogram, RelativeFlatness
from lightning_flatness.metrics.top_eigenvalue import HeadTopEigenvalue

__all__ = ["HeadTopEigenvalue", "Histogram", "RelativeFlatness"]
