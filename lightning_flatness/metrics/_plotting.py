"""Results of metrics in the form that torchmetrics draws."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Scalars = Mapping[str, Tensor]


def drawable(results: Scalars | Sequence[Scalars], names: Collection[str] | None = None) -> Any:
    """Result, or results as curves of equal length: NaN, which is not drawn, for entries that a result lacks.

    Args:
        results: what ``compute`` returned, once or several times.
        names: entries to draw; None for all.
    """
    if isinstance(results, Mapping):
        return {name: value for name, value in results.items() if names is None or name in names}
    missing = dict.fromkeys((name for result in results for name in result), torch.tensor(torch.nan))
    return [drawable({**missing, **result}, names) for result in results]
