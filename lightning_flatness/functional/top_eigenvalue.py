"""The sharpest direction of the mean loss in the weight of a linear head."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lightning_flatness.functional._checks import (
    check_counts,
    check_finite,
    check_matrix,
    check_same_batch,
    check_target,
)
from lightning_flatness.functional._lanczos import lanczos_top_eigenvalue
from lightning_flatness.functional._numerics import full_precision, wide
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss


def head_top_eigenvalue(
    features: Float[Tensor, "batch dim"],
    logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, " batch"] | Shaped[Tensor, "batch classes"] | None = None,
    *,
    loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
    include_bias: bool = False,
    tolerance: float = 1e-4,
    max_iterations: int = 200,
) -> Float[Tensor, ""]:
    r"""Largest eigenvalue of the head's Hessian of the mean loss over all samples given.

    ``H = (1/N) Σ H_z ⊗ φφᵀ`` is never formed: one product with it is two matrix products, without autograd, and
    Lanczos' method with full reorthogonalisation needs a few dozen of them. The eigenvalue does not depend on ``W``.

    Args:
        features: inputs ``φ`` of the head.
        logits: outputs ``z`` of the head, before any softmax.
        target: as for :func:`~lightning_flatness.functional.relative_flatness`.
        loss: as for :func:`~lightning_flatness.functional.relative_flatness`.
        include_bias: count the head's bias among its parameters.
        tolerance: relative residual at which to stop.
        max_iterations: most products with ``H``.

    Returns:
        Eigenvalue, a scalar in float64 (float32 on MPS).

    Raises:
        ValueError: as for :func:`~lightning_flatness.functional.relative_flatness`, if there is no sample, or if
            ``tolerance`` or ``max_iterations`` is not positive.

    Warns:
        UserWarning: if ``max_iterations`` do not reach ``tolerance``; what is returned is then a lower bound.

    Example:
        >>> head_top_eigenvalue(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
        tensor(2.5000, dtype=torch.float64)
    """
    check_counts(max_iterations=max_iterations)
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be > 0, got {tolerance}.")
    logit_loss = resolve_loss(loss)
    check_matrix("features", features)
    check_matrix("logits", logits)
    check_same_batch(features, logits)
    check_finite(features=features, logits=logits)
    target = check_target(logit_loss, logits, target)
    kept = logit_loss.kept(target)
    count = len(logits) if kept is None else int(kept.sum())
    if count == 0:
        raise ValueError("`features` must hold at least one sample that counts, got none.")
    features, logits = wide(features.detach()), wide(logits.detach())
    if include_bias:
        features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    with full_precision(logits.device):
        product = logit_loss.product(logits, target)

        def apply(vector: Tensor) -> Tensor:
            rows = vector.view(logits.shape[1], features.shape[1])
            return (product(features @ rows.T).T @ features).flatten() / count

        return lanczos_top_eigenvalue(
            apply, logits.new_empty(logits.shape[1] * features.shape[1]), tolerance, max_iterations
        )
