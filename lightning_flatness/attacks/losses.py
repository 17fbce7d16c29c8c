"""What an attack makes grow: functions of logits and classes, one value per sample.

Log-odds, margin and DLR grow with the logits' distance from being right and keep a gradient at every confidence; the
cross-entropy's vanishes, in float32, where the true class leads by more than about 100.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.attacks._class_logits import check_enough_classes, logits_of, other_logits, smallest, wrong_odds

LossName = Literal["cross_entropy", "log_odds", "margin", "dlr"]
AttackLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps ``(logits, target)`` to one value per sample, which the attack makes as large as it can."""

_LARGEST_LEAD = 5.0
"""In nats: how far the true class leads, at most, in the log-odds."""


def cross_entropy(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """``−log softmax(z)_y = log(1 + Σ_{k≠y} e^{z_k − z_y})``, which does not round to 0 for confident logits.

    Args:
        logits: outputs of the model, before any softmax.
        target: true classes.

    Returns:
        Losses in nats.

    Example:
        >>> cross_entropy(torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
        tensor([4.2484e-18])
    """
    return torch.nn.functional.softplus(wrong_odds(logits, target))


def log_odds(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """``T log Σ_{k≠y} e^{(z_k − z_y) / T}``, at ``T = 1`` the log-odds of a wrong answer.

    The cross-entropy is ``softplus`` of the log-odds: their gradients in the inputs have the same direction, but that
    of the log-odds never vanishes. Where the true class leads by more than 5 nats, ``T > 1`` makes it lead by 5, so
    that the other classes share the gradient as they do in a less confident model. Gradients take ``T`` as constant.

    Args:
        logits: outputs of the model, before any softmax.
        target: true classes.

    Returns:
        Log-odds in nats.

    Example:
        >>> log_odds(torch.tensor([[3.0, 0.0], [300.0, 0.0]]), torch.tensor([0, 0]))
        tensor([  -3., -300.])
    """
    temperature = temperature_of(logits, target)
    return temperature * wrong_odds(logits / temperature.unsqueeze(1), target)


def temperature_of(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Smallest temperature, from 1, at which the true class leads the next by at most 5 nats.

    Args:
        logits: outputs of the model.
        target: true classes.

    Returns:
        Temperatures, without a graph.

    Example:
        >>> temperature_of(torch.tensor([[50.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
        tensor([10.,  1.])
    """
    return (-margin(logits.detach(), target) / _LARGEST_LEAD).clamp(min=1)


def margin(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """``max_{k≠y} z_k − z_y``: positive where another class wins.

    Args:
        logits: outputs of the model.
        target: true classes.

    Returns:
        Margins in units of the logits.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    return other_logits(logits, target).amax(1) - logits_of(logits, target)


def dlr(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Difference of logits ratio: the margin over the gap between the largest and the third largest logit.

    It does not change when the logits are shifted or scaled.

    Args:
        logits: outputs of the model, at least 3 classes.
        target: true classes.

    Returns:
        Losses without unit.

    Raises:
        ValueError: if there are fewer than 3 classes.

    References:
        Croce and Hein, *Reliable evaluation of adversarial robustness*, ICML 2020, eq. 6.

    Example:
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    check_enough_classes("dlr", logits, 3)
    largest = logits.topk(3, dim=1).values
    return margin(logits, target) / (largest[:, 0] - largest[:, 2]).clamp(min=smallest(logits))


def resolve_attack_loss(loss: LossName | AttackLoss) -> AttackLoss:
    """Turn a name into the loss; functions are returned as they are.

    Args:
        loss: a name, or a function of ``(logits, target)`` that returns one value per sample.

    Returns:
        The loss.

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> resolve_attack_loss("margin") is margin
        True
    """
    if not isinstance(loss, str):
        return loss
    if loss not in _UNTARGETED:
        raise ValueError(f"`loss` must be one of {', '.join(get_args(LossName))} or a function, got {loss!r}.")
    return _UNTARGETED[loss]


_UNTARGETED: dict[str, AttackLoss] = {
    "cross_entropy": cross_entropy,
    "log_odds": log_odds,
    "margin": margin,
    "dlr": dlr,
}
