"""The true class and the others, in logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def logits_of(logits: Float[Tensor, "batch classes"], classes: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Logit of one class of each sample."""
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def other_logits(
    logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    """Logits with the true class out of the running: a copy with ``-inf`` in the place of each true class."""
    return logits.scatter(1, target.unsqueeze(1), -torch.inf)


def wrong_odds(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Log-odds of a wrong answer, ``log Σ_{k≠y} e^{z_k − z_y}``."""
    return torch.logsumexp(other_logits(logits, target) - logits_of(logits, target).unsqueeze(1), dim=1)


def smallest(logits: Tensor) -> float:
    """Smallest normal number of the dtype, by which a gap can be divided."""
    return float(torch.finfo(logits.dtype).tiny)


def check_enough_classes(loss: str, logits: Float[Tensor, "batch classes"], least: int) -> None:
    """Raise ``ValueError`` where a loss is not defined for so few classes."""
    if logits.shape[1] < least:
        raise ValueError(f"`loss` {loss} needs at least {least} classes, got {logits.shape[1]}; use 'margin'.")
