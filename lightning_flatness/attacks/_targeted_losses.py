"""What an attack makes grow that aims at one other class of each sample: one value per sample.

Arguments are the logits ``z`` before any softmax, the true classes ``y`` and the classes ``t`` that are to win.
"""

from collections.abc import Callable
from typing import get_args

from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.attacks._class_logits import check_enough_classes, logits_of, smallest, wrong_odds
from lightning_flatness.attacks.losses import LossName, cross_entropy

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps ``(logits, target, other)`` to one value per sample; it grows as ``other`` overtakes."""


def targeted_cross_entropy(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], other: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``log softmax(z)_t``, in nats."""
    del target
    return -cross_entropy(logits, other)


def targeted_log_odds(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], other: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``−log Σ_{k≠t} e^{z_k − z_t}``, in nats."""
    del target
    return -wrong_odds(logits, other)


def targeted_margin(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], other: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """``z_t − z_y``."""
    return logits_of(logits, other) - logits_of(logits, target)


def targeted_dlr(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], other: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Targeted difference of logits ratio, ``(z_t − z_y) / (z_(1) − (z_(3) + z_(4)) / 2)`` with sorted ``z_(k)``.

    Raises:
        ValueError: if there are fewer than 4 classes.

    References:
        Croce and Hein, *Reliable evaluation of adversarial robustness*, ICML 2020, eq. 7.
    """
    check_enough_classes("targeted_dlr", logits, 4)
    largest = logits.topk(4, dim=1).values
    gap = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return targeted_margin(logits, target, other) / gap.clamp(min=smallest(logits))


_TARGETED: dict[str, TargetedLoss] = {
    "cross_entropy": targeted_cross_entropy,
    "log_odds": targeted_log_odds,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


def resolve_targeted_loss(loss: LossName) -> TargetedLoss:
    """Turn a name into the targeted loss.

    Raises:
        ValueError: if the name is unknown.
    """
    if loss not in _TARGETED:
        raise ValueError(f"`loss` must be one of {', '.join(get_args(LossName))} with target classes, got {loss!r}.")
    return _TARGETED[loss]
