"""What targets say of samples: right or wrong, and of which class."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_flatness.functional.losses import LogitLoss


class Answers(NamedTuple):
    """Which samples are classified right, wrong, or have a target that is no class."""

    right: Bool[Tensor, " batch"]
    wrong: Bool[Tensor, " batch"]
    outside: Bool[Tensor, " batch"]

    @classmethod
    def of(cls, loss: LogitLoss, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> "Answers":
        """None of the three where targets are no classes."""
        none = logits.new_zeros(len(logits), dtype=torch.bool)
        if target is None or not _are_classes(target) or not loss.target_is_class:
            return cls(none, none, none)
        right = logits.argmax(1) == target
        outside = (target < 0) | (target >= logits.shape[1])
        return cls(right, ~right, outside)


def sums_by_class(
    values: Float[Tensor, " batch"],
    valid: Bool[Tensor, " batch"],
    logits: Float[Tensor, "batch classes"],
    target: Tensor | None,
    num_classes: int,
) -> Float[Tensor, "2 classes"]:
    """Sum of the valid values of each class, and their number; targets out of range are not noticed.

    Raises:
        ValueError: if the head has another number of classes, or targets are no classes.
    """
    if logits.shape[1] != num_classes:
        raise ValueError(f"`num_classes` must be that of the head ({logits.shape[1]}), got {num_classes}.")
    if target is None or not _are_classes(target):
        shown = None if target is None else f"{target.dtype} {tuple(target.shape)}"
        raise ValueError(f"`target` must hold one class index per sample with num_classes={num_classes}, got {shown}.")
    parts = torch.stack([torch.where(valid, values, 0), valid.to(values)])
    return parts.new_zeros(2, num_classes).index_add(1, target.long().clamp(0, num_classes - 1), parts)


def _are_classes(target: Tensor) -> bool:
    return target.ndim == 1 and not target.is_floating_point()
