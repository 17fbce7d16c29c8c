"""How the cross-entropy of a linear head changes when its features move, exactly."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.functional._checks import check_classification, check_finite, check_matrix
from lightning_flatness.functional._head import Head
from lightning_flatness.functional._numerics import full_precision, wide


def loss_change(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    weight: Float[Tensor, "classes dim"],
    displacement: Float[Tensor, "batch dim"],
) -> Float[Tensor, " batch"]:
    r"""Change of each sample's cross-entropy when its features move by ``displacement``, exactly.

    ``ℓ(φ + u) − ℓ(φ) = log Σ_j p_j e^{(w_j − w_y)·u}``: what
    :func:`~lightning_flatness.functional.loss_increase_bound` bounds over all ``u`` of one length. It needs no logits
    at the other end, and small changes of a confident loss keep their digits. Nothing here is differentiable.

    Args:
        logits: output ``z`` of the head, before any softmax.
        target: class indices ``y``.
        weight: weight ``W`` of the head.
        displacement: ``u``, in the units of the features.

    Returns:
        Change in nats, negative where the loss falls, float64 (float32 on MPS).

    Raises:
        ValueError: if shapes do not fit, a value is not finite or a target is not a class.

    Example:
        >>> logits, target = torch.tensor([[8.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
        >>> loss_change(logits, target, torch.eye(4), torch.tensor([[-3.0, 4.0, 0.0, 0.0]]))
        tensor([0.3221], dtype=torch.float64)
    """
    check_classification(logits, target, weight)
    check_matrix("displacement", displacement)
    if displacement.shape != (len(logits), weight.shape[1]):
        raise ValueError(
            f"`displacement` must have shape ({len(logits)}, {weight.shape[1]}), got {tuple(displacement.shape)}."
        )
    check_finite(displacement=displacement)
    with full_precision(logits.device):
        slopes = _slopes(Head(weight.detach()), wide(displacement.detach()))
        true_class = target.unsqueeze(1).long()
        slopes -= slopes.gather(1, true_class)
        log_prob = wide(logits.detach()).log_softmax(1)
        # The true class adds nothing to the sum, so that a tiny sum keeps its digits; a large one might overflow,
        # and one near -1 cancels.
        rise = (log_prob.exp() * slopes.expm1()).scatter(1, true_class, 0.0).sum(1)
        return torch.where((rise > -0.5) & (rise < 1.0), rise.log1p(), (log_prob + slopes).logsumexp(1))


def _slopes(head: Head, displacement: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
    """``w_j·u`` up to a number per sample, of rows without their common part, which would only cost digits."""
    centre = wide(head.centre)
    return torch.cat([displacement @ (wide(head.rows(rows)) - centre).T for rows in head.row_slices()], dim=1)
