r"""What becomes of flatness, loss and confidence when weight and bias of the head are multiplied by a number.

The logits are multiplied by it and the features stay, so that no decision changes: all of it follows from one forward
of the model as it is. A head multiplied by ``s`` is one at the temperature ``1 / s``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_flatness.functional._checks import check_classification, check_finite, check_head_inputs, check_scales
from lightning_flatness.functional._head import Head
from lightning_flatness.functional._numerics import (
    TILE_ELEMENTS,
    at_least_float32,
    chunks,
    full_precision,
    sq_norm,
    wide,
)
from lightning_flatness.functional._softmax import softmax_moments


class ScaledHead(NamedTuple):
    """What a head says of each sample once weight and bias are multiplied, one row per scale.

    Args:
        relative_flatness: neuronwise κ in the multiplied weight; float64 (float32 on MPS), as the next two.
        loss: cross-entropy in nats.
        confidence: probability of the predicted class.
        correct: the prediction is the true class.
    """

    relative_flatness: Float[Tensor, "scales batch"]
    loss: Float[Tensor, "scales batch"]
    confidence: Float[Tensor, "scales batch"]
    correct: Bool[Tensor, "scales batch"]


def scale_head(
    features: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    scales: Sequence[float],
) -> ScaledHead:
    r"""Evaluate the heads ``sW, sb`` for many ``s``, from the features and logits of ``W, b``.

    ``κ_s = ‖φ‖² s² tr(Wᵀ H(sz) W)`` is the neuronwise relative flatness in the multiplied weight, ``log(1 + Σ_{k≠y}
    exp(s(z_k − z_y)))`` the loss. No decision changes, and the κ of each sample goes to 0 with growing ``s``: flatness
    by confidence. Samples near the decision boundary, whose κ first grows like ``s²``, are the last and carry the mean.

    The loss is the softmax cross-entropy, without class weights or label smoothing. A module whose weights really are
    multiplied rounds its logits anew, which changes ``sz`` by about ``6e-8 s|z|`` in float32.

    Args:
        features: input ``φ`` of the head.
        weight: weight ``W`` of the head as it is.
        logits: output ``z`` of the head as it is, its bias included if it has one.
        target: true classes.
        scales: factors ``s`` of weight and bias.

    Returns:
        Relative flatness, loss, confidence and correctness of every sample at every scale; ``correct`` is decided in
        the precision of the logits (at least float32), where a large factor might make ties.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, a target is out of range, or ``scales`` are not
            different positive numbers.

    References:
        Walter et al., *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231.

    Example:
        >>> features, target = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
        >>> result = scale_head(features, torch.eye(2), features, target, scales=[1.0, 10.0, 100.0])
        >>> result.relative_flatness.squeeze(1)
        tensor([1.9661e+00, 4.5396e-02, 3.7201e-39], dtype=torch.float64)
        >>> result.confidence.squeeze(1), result.correct.all()
        (tensor([0.7311, 1.0000, 1.0000], dtype=torch.float64), tensor(True))
    """
    check_scales(scales)
    check_head_inputs(features, weight, logits, None)
    check_classification(logits, target, weight)
    check_finite(features=features)
    features, weight, logits = features.detach(), weight.detach(), at_least_float32(logits.detach())
    head, size = Head(weight), TILE_ELEMENTS // max(1024, weight.shape[1])
    with full_precision(logits.device):
        parts = [
            _scaled(head, sq_norm(features[rows]), logits[rows], target[rows].long(), scale)
            for scale in scales
            for rows in chunks(len(logits), size)
        ]
    columns = (torch.cat(column).view(len(scales), len(logits)) for column in zip(*parts, strict=True))
    return ScaledHead(*columns)


def _scaled(head: Head, feature_sq_norms: Tensor, logits: Tensor, target: Tensor, scale: float) -> ScaledHead:
    """One scale of a chunk of samples; vectors."""
    moments = softmax_moments(logits, head, 1 / scale)
    gap = wide(logits.gather(1, target.unsqueeze(1)) - logits.gather(1, moments.first.unsqueeze(1))).squeeze(1)
    return ScaledHead(
        relative_flatness=moments.variance().times(scale**2 * feature_sq_norms).linear(),
        loss=-(scale * gap + moments.log_first),
        confidence=moments.log_first.exp(),
        correct=(scale * logits).argmax(1) == target,
    )
