"""The head's top eigenvalue as torchmetrics: the first samples are kept, the rest is in the functional core."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_flatness.functional._checks import check_counts, finite_rows, flatten_leading
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss
from lightning_flatness.functional.top_eigenvalue import head_top_eigenvalue
from lightning_flatness.metrics._configuration import fingerprint


class HeadTopEigenvalue(Metric):
    """Largest eigenvalue of the head's Hessian of the mean loss, over the first samples seen.

    Features and logits of at most ``max_samples`` samples per process are kept in float32; see
    :func:`~lightning_flatness.functional.head_top_eigenvalue` for the definition.

    Args:
        max_samples: most samples kept on each process; later ones are not looked at.
        loss: as for :class:`RelativeFlatness`.
        include_bias: count the head's bias among its parameters.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``max_samples`` < 1, or the loss is unknown.

    Example:
        >>> metric = HeadTopEigenvalue()
        >>> metric.update(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
        >>> metric.compute()
        tensor(2.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = True  # only the whole state knows how much room is left
    plot_lower_bound: float | None = 0.0

    samples: list[Tensor]
    layout: Tensor
    configuration: Tensor

    def __init__(
        self,
        max_samples: int = 256,
        loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
        *,
        include_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_counts(max_samples=max_samples)
        self.max_samples = max_samples
        self.loss = resolve_loss(loss)
        self.include_bias = include_bias
        # One vector, since processes without samples can be joined with others in one dimension only.
        self.add_state("samples", [], dist_reduce_fx="cat")
        self.add_state("layout", torch.zeros(len(_Layout._fields), dtype=torch.int64), dist_reduce_fx="max")
        self.add_state("configuration", fingerprint(max_samples, self.loss, include_bias), dist_reduce_fx="max")

    def update(
        self,
        features: Float[Tensor, "*batch dim"],
        logits: Float[Tensor, "*batch classes"],
        target: Shaped[Tensor, "*batch"] | Shaped[Tensor, "*batch classes"] | None = None,
    ) -> None:
        """Keep samples (or tokens: leading dimensions are flattened) while there is room.

        Args:
            features: inputs of the head.
            logits: outputs of the head, before any softmax.
            target: what the loss is given.
        """
        features, logits, target = flatten_leading(features, logits, target)
        columns = (
            [features, logits]
            if target is None
            else [features, logits, target.reshape(len(target), target.shape[1:].numel())]
        )
        layout = _Layout(
            features.shape[1],
            logits.shape[1],
            sum(part.shape[1] for part in columns[2:]),
            int(target is not None and not target.is_floating_point()),
        )
        room = self.max_samples - sum(map(len, self.samples)) // layout.width()
        if room <= 0:
            return
        keep = finite_rows(features) & finite_rows(logits)
        kept = self.loss.kept(target)
        rows = (keep if kept is None else keep & kept).nonzero().squeeze(1)[:room]
        self.layout = self.layout.new_tensor(layout)
        self.samples.append(torch.cat([part[rows].float() for part in columns], dim=1).flatten())

    def compute(self) -> Tensor:
        """Return the eigenvalue, a scalar; NaN where no sample was seen."""
        layout = _Layout(*(int(size) for size in self.layout))
        samples = dim_zero_cat(self.samples) if len(self.samples) else torch.zeros(0, device=self.device)
        if not samples.numel():
            return torch.tensor(torch.nan, device=self.device)
        features, logits, target = torch.split(samples.view(-1, layout.width()), list(layout[:3]), dim=1)
        return head_top_eigenvalue(
            features, logits, layout.restore(target), loss=self.loss, include_bias=self.include_bias
        )

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one result of ``compute``, or a list of them as a curve.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


class _Layout(NamedTuple):
    """Columns of a kept sample, all of them in one dtype."""

    dim: int
    classes: int
    target_columns: int
    integer_target: int

    def width(self) -> int:
        return self.dim + self.classes + self.target_columns

    def restore(self, target: Float[Tensor, "batch columns"]) -> Tensor | None:
        """Give the target its own shape and kind back."""
        if not self.target_columns:
            return None
        target = target if self.target_columns > 1 else target.squeeze(1)
        return target.round().long() if self.integer_target else target
