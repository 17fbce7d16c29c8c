"""What a loss has to say of its logit Hessian."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._numerics import TILE_ELEMENTS, LogScaled, chunks, wide

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Maps float64 ``logits`` (float32 on MPS) and ``target`` to one loss per sample, shape ``(batch,)``."""
HessianProduct = Callable[[Float[Tensor, "batch classes"]], Float[Tensor, "batch classes"]]


class Traces(NamedTuple):
    """Per-sample traces of the logit Hessian, plain and weighted by the head's rows."""

    logit_trace: LogScaled  # tr H_z
    curvature: LogScaled  # tr(Wᵀ H_z W)


class LogitLoss(ABC):
    """A loss of the logits, known by its logit Hessian."""

    @property
    def needs_target(self) -> bool:
        """Whether the Hessian depends on the target."""
        return False

    @property
    def target_is_class(self) -> bool:
        """Whether integer targets are classes, so that predictions can be right or wrong."""
        return False

    def kept(self, target: Tensor | None) -> Bool[Tensor, " batch"] | None:
        """Samples that count; None where all do."""
        del target
        return None

    def check_logits(self, logits: Tensor) -> None:
        """Raise ``ValueError`` where the loss makes no sense for ``logits``."""
        del logits

    @abstractmethod
    def check_target(self, logits: Tensor, target: Tensor) -> None:
        """Raise ``ValueError`` where ``target`` does not fit ``logits``."""

    def check_target_values(self, logits: Tensor, target: Tensor) -> None:
        """Raise ``ValueError`` where a value of ``target`` is out of range; waits for the device."""
        del logits, target

    @abstractmethod
    def traces(self, logits: Float[Tensor, "batch classes"], target: Tensor | None, head: Head) -> Traces:
        """Evaluate ``tr H_z`` and ``tr(Wᵀ H_z W)`` of a chunk of samples."""

    @abstractmethod
    def product(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> HessianProduct:
        """Return the function ``v ↦ H_z v``, sample by sample."""

    def top_eigenvalue(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> LogScaled:
        """Largest eigenvalue of each sample's ``H_z``; here from the dense matrix."""
        batch, classes = logits.shape
        values = []
        for rows in chunks(batch, TILE_ELEMENTS // classes**2):
            part = wide(logits[rows])
            product = self.product(part, None if target is None else target[rows])
            columns = [product(unit.expand_as(part)) for unit in torch.eye(classes).to(part)]
            dense = torch.stack(columns, dim=2)
            values.append(torch.linalg.eigvalsh((dense + dense.mT) / 2)[:, -1])
        return LogScaled.of(torch.cat(values))


def check_several_classes(logits: Tensor) -> None:
    """Raise ``ValueError`` for a single logit, whose softmax is always 1."""
    if logits.shape[1] < 2:
        raise ValueError(
            f"`logits` must have at least 2 columns for a softmax loss, got {logits.shape[1]}; "
            'pass loss="binary_cross_entropy" for a single logit, loss="mse" for a regression.'
        )


def check_weight(name: str, weight: Tensor | Sequence[float] | None, logits: Tensor, *, or_one: bool = False) -> None:
    """Raise ``ValueError`` unless ``weight`` is None or has one value per class, or one for all where that is meant."""
    if weight is None or len(weight) == logits.shape[1] or (or_one and len(weight) == 1):
        return
    raise ValueError(f"`{name}` of the loss must hold one value per class ({logits.shape[1]}), got {len(weight)}.")


def check_same_shape(logits: Tensor, target: Tensor, hint: str = "") -> None:
    if target.numel() != logits.numel() or target.shape[:1] != logits.shape[:1]:
        raise ValueError(
            f"`target` must have the shape of `logits`, {tuple(logits.shape)}, got {tuple(target.shape)}.{hint}"
        )


def check_classes(logits: Tensor, target: Tensor) -> None:
    is_integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    if not is_integer or target.shape != logits.shape[:1]:
        one_hot = "; take `argmax(1)` of one-hot targets" if target.shape == logits.shape else ""
        raise ValueError(
            f"`target` must hold one class index per sample, shape ({logits.shape[0]},), "
            f"got {target.dtype} {tuple(target.shape)}{one_hot}."
        )


def check_class_range(logits: Tensor, target: Tensor, ignore_index: int) -> None:
    bad = target[(target != ignore_index) & ((target < 0) | (target >= logits.shape[1]))]
    if bad.numel():
        raise ValueError(
            f"`target` must be in [0, {logits.shape[1]}) or ignore_index={ignore_index}, got {int(bad[0])}."
        )
