r"""How much the cross-entropy can grow when the features of a linear head move, and how far they must move for it.

With ``a_j = w_j − w_y`` and ``p = softmax(z)``, features moved by ``u`` change the loss of a sample by exactly
``log Σ_j p_j e^{a_j·u}``. Everything here follows from that; nothing here is differentiable.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.functional._bounds_methods import LossBound, SoundBound, TaylorBound, bennett, refined, trace
from lightning_flatness.functional._bracketing import largest_below
from lightning_flatness.functional._checks import check_classification, check_finite
from lightning_flatness.functional._head import Head
from lightning_flatness.functional._local_loss import LocalLoss
from lightning_flatness.functional._numerics import chunks, full_precision, numbers, wide
from lightning_flatness.functional._row_offsets import RowOffsets
from lightning_flatness.functional._softmax import softmax_moments

BoundMethod = Literal["bennett", "trace", "refined", "taylor"]
PerSample = float | Float[Tensor, ""] | Float[Tensor, " batch"]

_FORMULAS = {"bennett": bennett, "trace": trace, "refined": refined}
_CHUNK_ELEMENTS = 2**21  # of a (samples, classes) temporary, 16 MiB
_CHUNK_SAMPLES = 4096


def loss_increase_bound(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    weight: Float[Tensor, "classes dim"],
    radius: PerSample,
    *,
    method: BoundMethod = "bennett",
    feature_norm: PerSample | None = None,
    cubic_constant: float | None = None,
) -> Float[Tensor, " batch"]:
    r"""Bound how much each sample's cross-entropy can grow when its features move by at most ``radius``.

    ===========  =====================================================================================
    method       bound, with the gradient ``g = Σ p_j a_j`` and ``ψ(x) = (e^x − 1 − x) / x²``
    ===========  =====================================================================================
    ``bennett``  ``log(1 + ρ‖g‖ + ρ² λ_max(M))``, ``M = Σ p_j ψ(ρ‖a_j‖) a_j a_jᵀ``
    ``trace``    ``log(1 + ρ‖g‖ + ρ² tr M)``
    ``refined``  ``bennett``; where ascent stays more than 10 % below that,
                 ``log(p_y + min_t e^{tρ²} λ_max[√(p_j p_k) e^{a_j·a_k/4t}])``, ``j, k ≠ y``; there again, branch
                 and bound
    ``taylor``   ``½ρ² ‖W‖_F² tr H_z + C (ρ/‖φ‖)³`` (Walter et al. 2025)
    ===========  =====================================================================================

    The first three hold for every sample and radius up to the rounding of float64, are exact for two classes and to
    first order at 0, and grow with the radius, except that ``refined`` may fall by those 10 %. For more than 17
    classes, only the 16 that matter most (63 where ``refined`` works harder) are told apart, and the others add their
    trace: loose where hundreds of classes compete, and ``bennett`` can fall by a trifle where the 16 change.

    ``taylor`` is **not a bound of a sample's loss**: it assumes a local minimum of the loss in the features, hence no
    first-order term. In the inputs it reads ``δ²L²/(2r²) κ + δ³/(24r³) K d L⁶`` for displacements ``δ``, ``κ`` the
    layerwise relative flatness, a Lipschitz constant ``L`` of ``φ`` and ``r ≤ ‖φ‖``; with ``ρ = Lδ`` and ``r = ‖φ‖``,
    the reported constant is ``C = K d L³ / 24``.

    Args:
        logits: output ``z`` of the head, before any softmax.
        target: class indices ``y``.
        weight: weight ``W`` of the head.
        radius: Euclidean length ``ρ`` in the units of the features, for all samples or for each.
        method: which bound.
        feature_norm: ``‖φ‖``, for ``taylor``.
        cubic_constant: ``C``, for ``taylor``; by default ``K d / 24``, the reported one for ``L = 1``.

    Returns:
        Bound on the increase in nats, ≥ 0, float64 (float32 on MPS); infinite where ``ρ ‖a_j‖`` overflows.

    Raises:
        ValueError: if shapes do not fit, a value is not finite or has the wrong sign, a target is not a class, the
            method is unknown, ``feature_norm`` is missing or not for that method, or float64 weights are so large or
            small that their squares are not numbers.

    References:
        Bennett, *Probability Inequalities for the Sum of Independent Random Variables*, JASA 57 (1962).
        Walter et al., *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231.

    Example:
        >>> logits, target = torch.tensor([[8.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
        >>> loss_increase_bound(logits, target, torch.eye(4), 5.0)
        tensor([0.5820], dtype=torch.float64)
        >>> loss_increase_bound(logits, target, torch.eye(4), 5.0, method="refined")
        tensor([0.4193], dtype=torch.float64)
    """
    check_classification(logits, target, weight)
    radii = _per_sample("radius", radius, logits)
    if (radii < 0).any():
        raise ValueError(f"`radius` must be >= 0, got {radii.min().item():g}.")
    norms = _taylor_norms(method, feature_norm, cubic_constant, logits)
    parts = _bounds(logits, target, weight, method, norms, cubic_constant)
    with full_precision(logits.device):
        return torch.cat([bound.at(radii[rows]) for rows, bound in parts])


def loss_radius(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    weight: Float[Tensor, "classes dim"],
    loss_increase: PerSample,
    *,
    method: BoundMethod = "bennett",
    feature_norm: PerSample | None = None,
    cubic_constant: float | None = None,
) -> Float[Tensor, " batch"]:
    r"""Find the largest radius within which each sample's cross-entropy grows by at most ``loss_increase``.

    ``max {ρ : loss_increase_bound(ρ) ≤ ε}``, to 1e-7 relative and never above: what
    :func:`loss_increase_bound` gives at the result is at most ``loss_increase``.

    Args:
        logits: output ``z`` of the head, before any softmax.
        target: class indices ``y``.
        weight: weight ``W`` of the head.
        loss_increase: ``ε`` > 0 in nats, for all samples or for each.
        method: as for :func:`loss_increase_bound`; ``taylor`` does not give a guarantee.
        feature_norm: as for :func:`loss_increase_bound`.
        cubic_constant: as for :func:`loss_increase_bound`.

    Returns:
        Radius in the units of the features, float64 (float32 on MPS); infinite where all rows of ``weight`` are equal.

    Raises:
        ValueError: as for :func:`loss_increase_bound`.

    Example:
        >>> logits, target = torch.tensor([[8.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
        >>> loss_radius(logits, target, torch.eye(4), 1.0)
        tensor([5.5500], dtype=torch.float64)
    """
    check_classification(logits, target, weight)
    increases = _per_sample("loss_increase", loss_increase, logits)
    if (increases <= 0).any():
        raise ValueError(f"`loss_increase` must be > 0, got {increases.min().item():g}.")
    norms = _taylor_norms(method, feature_norm, cubic_constant, logits)
    radii = []
    with full_precision(logits.device):
        for rows, bound in _bounds(logits, target, weight, method, norms, cubic_constant):
            radii.append(largest_below(bound.at, increases[rows], *bound.bracket(increases[rows])))
    return torch.cat(radii)


def decision_radius(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"],
    weight: Float[Tensor, "classes dim"],
) -> Float[Tensor, " batch"]:
    r"""Distance of the features to the nearest point where ``target`` is no longer predicted, exactly.

    ``min_{k≠y} (z_y − z_k) / ‖w_y − w_k‖``: the features can move by any smaller Euclidean length without changing the
    prediction.

    Args:
        logits: output ``z`` of the head, before any softmax.
        target: class indices ``y``.
        weight: weight ``W`` of the head.

    Returns:
        Distance in the units of the features, float64 (float32 on MPS); 0 where another class is at least as probable
        already, infinite where all rows of ``weight`` are equal to the target's.

    Raises:
        ValueError: if shapes do not fit, a value is not finite or a target is not a class.

    Example:
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> decision_radius(torch.tensor([[6.0, 1.0]]), torch.tensor([0]), weight)
        tensor([1.], dtype=torch.float64)
    """
    check_classification(logits, target, weight)
    offsets, radii = RowOffsets(Head(weight.detach())), []
    with full_precision(logits.device):
        for rows in _samples(logits):
            values, true_class = wide(logits[rows].detach()), target[rows].unsqueeze(1).long()
            gaps = (values.gather(1, true_class) - values).clamp(min=0)
            ratios = torch.where(gaps > 0, gaps / offsets.lengths(target[rows].long()), 0.0)
            radii.append(ratios.scatter(1, true_class, torch.inf).amin(1))
    return torch.cat(radii)


def _bounds(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    method: BoundMethod,
    feature_norms: Tensor | None,
    cubic_constant: float | None,
) -> Iterator[tuple[slice, LossBound]]:
    """One part of the samples after the other, and their bound."""
    logits, target, head = logits.detach(), target.long(), Head(weight.detach())
    offsets = RowOffsets(head)
    for rows in _samples(logits):
        if feature_norms is None:
            yield rows, SoundBound(LocalLoss.of(logits[rows], target[rows], offsets), _FORMULAS[method])
            continue
        constant = head.num_classes * head.dim / 24 if cubic_constant is None else cubic_constant
        logit_trace = softmax_moments(logits[rows], Head.without_columns(logits)).trace().linear()
        yield rows, TaylorBound(head.sq_norm() * logit_trace / 2, constant / feature_norms[rows] ** 3)


def _samples(logits: Tensor) -> Iterator[slice]:
    return chunks(len(logits), min(_CHUNK_SAMPLES, _CHUNK_ELEMENTS // logits.shape[1]))


def _per_sample(name: str, value: PerSample, logits: Tensor) -> Float[Tensor, " batch"]:
    values = numbers(value, logits).detach()
    if values.shape not in {(), logits.shape[:1]}:
        raise ValueError(
            f"`{name}` must be a number or hold one per sample ({len(logits)}), got shape {tuple(values.shape)}."
        )
    check_finite(**{name: values})
    return values.expand(len(logits))


def check_method(method: str) -> None:
    """Raise ``ValueError`` where there is no such method."""
    if method not in get_args(BoundMethod):
        raise ValueError(f"`method` must be one of {', '.join(get_args(BoundMethod))}, got {method!r}.")


def check_guarantees(method: str) -> None:
    """Raise ``ValueError`` unless the method bounds the loss of every sample."""
    check_method(method)
    if method == "taylor":
        raise ValueError("`method` must bound the loss of every sample, got 'taylor', which does not.")


def check_cubic_constant(cubic_constant: float | None) -> None:
    """Raise ``ValueError`` unless the constant is None or not negative."""
    if cubic_constant is not None and not 0 <= cubic_constant < float("inf"):
        raise ValueError(f"`cubic_constant` must be >= 0 and finite, got {cubic_constant}.")


def _taylor_norms(
    method: str, feature_norm: PerSample | None, cubic_constant: float | None, logits: Tensor
) -> Float[Tensor, " batch"] | None:
    """``‖φ‖`` where the method needs it."""
    check_method(method)
    if method != "taylor":
        if feature_norm is not None or cubic_constant is not None:
            raise ValueError(f"`feature_norm` and `cubic_constant` are for method='taylor' only, got {method!r}.")
        return None
    if feature_norm is None:
        raise ValueError("`feature_norm` must be given for method='taylor', got None.")
    norms = _per_sample("feature_norm", feature_norm, logits)
    if (norms <= 0).any():
        raise ValueError(f"`feature_norm` must be > 0, got {norms.min().item():g}.")
    check_cubic_constant(cubic_constant)
    return norms
