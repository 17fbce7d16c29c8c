"""Means of several quantities whose numbers of samples differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class NamedMeans(Metric):
    """Means by name, exact under any batching and on any number of processes.

    Args:
        names: of the quantities.
        kwargs: as for :class:`torchmetrics.Metric`.

    Example:
        >>> means = NamedMeans(["zeros", "ones"])
        >>> means.update({"ones": (torch.tensor(2.0), torch.tensor(2.0))})
        >>> means.compute()
        {'ones': tensor([1., 2.], dtype=torch.float64)}
    """

    full_state_update = False

    totals: Tensor

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_state("totals", torch.zeros(len(names), 2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, parts: Mapping[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]) -> None:
        """Add sums and counts of some of the quantities.

        Args:
            parts: name → sum and count.
        """
        zero = self.totals.new_zeros(())
        rows = [torch.stack([number.to(zero) for number in parts.get(name, (zero, zero))]) for name in self.names]
        self.totals = self.totals + torch.stack(rows)

    def compute(self) -> dict[str, Tensor]:
        """Return mean and count of every quantity that was counted, shape ``(2,)``."""
        counted = {name: total for name, total in zip(self.names, self.totals, strict=True) if total[1] > 0}
        return {name: torch.stack([total[0] / total[1], total[1]]) for name, total in counted.items()}
