"""Losses that treat each logit for itself: their logit Hessian is diagonal."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._logit_loss import HessianProduct, LogitLoss, Traces, check_same_shape, check_weight
from lightning_flatness.functional._numerics import TILE_ELEMENTS, LogScaled, chunks, numbers, wide

ClassReduction = Literal["mean", "sum"]


class ElementwiseLoss(LogitLoss):
    """A loss that sums or averages a function of each logit over the classes: ``H_z`` is diagonal."""

    reduction: ClassReduction

    @abstractmethod
    def diagonal(self, logits: Tensor, target: Tensor | None, classes: slice) -> Tensor:
        """Second derivative of each class's term; ``logits`` and ``target`` are cut to ``classes`` already."""

    @override
    def check_target(self, logits: Tensor, target: Tensor) -> None:
        if self.needs_target:
            check_same_shape(logits, target)

    @override
    def traces(self, logits: Float[Tensor, "batch classes"], target: Tensor | None, head: Head) -> Traces:
        trace = curvature = wide(logits.new_zeros(logits.shape[0]))
        for classes, diagonal in self._tiles(logits, target):
            trace = trace + diagonal.sum(1)
            curvature = curvature + diagonal @ head.row_sq_norms[classes]
        return Traces(LogScaled.of(trace), LogScaled.of(curvature))

    @override
    def top_eigenvalue(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> LogScaled:
        largest = [diagonal.amax(1) for _, diagonal in self._tiles(logits, target)]
        return LogScaled.of(torch.stack(largest).amax(0))

    @override
    def product(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> HessianProduct:
        diagonal = torch.cat([part for _, part in self._tiles(logits, target)], dim=1).to(logits.dtype)
        return lambda vectors: diagonal * vectors

    def _tiles(self, logits: Tensor, target: Tensor | None) -> list[tuple[slice, Tensor]]:
        batch, num_classes = logits.shape
        scale = 1 / num_classes if self.reduction == "mean" else 1.0
        target = target.reshape(logits.shape) if target is not None and self.needs_target else None
        return [
            (tile, scale * self.diagonal(wide(logits[:, tile]), None if target is None else target[:, tile], tile))
            for tile in chunks(num_classes, TILE_ELEMENTS // max(1, batch))
        ]


@dataclass(frozen=True, eq=False)
class MeanSquaredError(ElementwiseLoss):
    """Squared error, ``H_z = 2/K`` (``reduction="mean"`` over the classes) or ``2`` on the diagonal.

    Args:
        reduction: over the classes.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), loss=MeanSquaredError())
        tensor([2.], dtype=torch.float64)
    """

    reduction: ClassReduction = "mean"

    @override
    def diagonal(self, logits: Tensor, target: Tensor | None, classes: slice) -> Tensor:
        del target, classes
        return torch.full_like(logits, 2.0)


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(ElementwiseLoss):
    """Cross-entropy of one sigmoid per class, ``H_z = σ(z)σ(−z)``, times ``pos_weight·y + 1 − y`` and ``weight``.

    Args:
        pos_weight: weight of the positive answer of each class (then targets are needed), or None.
        weight: weight of each class, or None.
        reduction: over the classes.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), loss=BinaryCrossEntropy())
        tensor([0.2500], dtype=torch.float64)
    """

    pos_weight: Tensor | Sequence[float] | None = None
    weight: Tensor | Sequence[float] | None = None
    reduction: ClassReduction = "mean"

    @property
    @override
    def needs_target(self) -> bool:
        return self.pos_weight is not None

    @override
    def check_logits(self, logits: Tensor) -> None:
        check_weight("pos_weight", self.pos_weight, logits, or_one=True)
        check_weight("weight", self.weight, logits, or_one=True)

    @override
    def diagonal(self, logits: Tensor, target: Tensor | None, classes: slice) -> Tensor:
        diagonal = torch.sigmoid(logits) * torch.sigmoid(-logits)
        if self.pos_weight is not None and target is not None:
            positive = numbers(self.pos_weight, logits)
            positive = positive[classes] if positive.numel() > 1 else positive
            diagonal = diagonal * (positive * target + 1 - target)
        if self.weight is not None:
            weight = numbers(self.weight, logits)
            diagonal = diagonal * (weight[classes] if weight.numel() > 1 else weight)
        return diagonal


@dataclass(frozen=True, eq=False)
class Huber(ElementwiseLoss):
    """Huber loss, ``H_z = scale · 1[|z − y| < delta]`` almost everywhere.

    Args:
        delta: residual at which the loss becomes linear.
        scale: factor of the loss; ``1/beta`` makes it torch's ``SmoothL1Loss(beta)``.
        reduction: over the classes.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2), loss=Huber())
        tensor([0.5000], dtype=torch.float64)
    """

    delta: float = 1.0
    scale: float = 1.0
    reduction: ClassReduction = "mean"

    @property
    @override
    def needs_target(self) -> bool:
        return True

    @override
    def diagonal(self, logits: Tensor, target: Tensor | None, classes: slice) -> Tensor:
        del classes
        assert target is not None
        return self.scale * ((logits - target).abs() < self.delta).to(logits)


@dataclass(frozen=True, eq=False)
class PoissonNLL(ElementwiseLoss):
    """Poisson negative log-likelihood of the log-rate, ``H_z = e^z``.

    Args:
        reduction: over the classes.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), loss=PoissonNLL())
        tensor([1.], dtype=torch.float64)
    """

    reduction: ClassReduction = "mean"

    @override
    def diagonal(self, logits: Tensor, target: Tensor | None, classes: slice) -> Tensor:
        del target, classes
        return logits.exp()
