r"""Relative flatness of a linear head, in closed form.

The Hessian of one sample's loss with respect to the weight ``W`` of a linear layer ``z = Wφ + b`` is exactly
``H_z ⊗ φφᵀ``, with ``H_z`` the Hessian of the loss in the logits. Every quantity here follows from that; none needs
more than the features, the logits and ``W``. Small values mean flat.
"""

from typing import NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from lightning_flatness.functional._checks import (
    FlatnessVariant,
    check_finite,
    check_head,
    check_head_inputs,
    check_target,
    check_variant,
)
from lightning_flatness.functional._head import Head
from lightning_flatness.functional._logit_loss import Traces
from lightning_flatness.functional._numerics import TILE_ELEMENTS, LogScaled, chunks, full_precision
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss


class FlatnessFactors(NamedTuple):
    """What relative flatness is made of, per sample (``weight_norm``: per head); float64 (float32 on MPS).

    ``neuronwise = feature_norm² · curvature`` and ``layerwise = weight_norm² · feature_norm² · logit_trace``.

    Args:
        curvature: ``tr(Wᵀ H_z W) = tr ∇²_φ ℓ``.
        logit_trace: ``tr H_z``, the confidence factor.
        feature_norm: ``‖φ‖``.
        weight_norm: ``‖W‖_F``.
    """

    curvature: LogScaled
    logit_trace: LogScaled
    feature_norm: Float[Tensor, " batch"]
    weight_norm: Float[Tensor, ""]

    def neuronwise(self) -> LogScaled:
        """``‖φ‖² tr(Wᵀ H_z W)``."""
        return self.curvature.times(self.feature_norm.square())

    def layerwise(self) -> LogScaled:
        """``‖W‖_F² ‖φ‖² tr H_z``."""
        return self.logit_trace.times((self.weight_norm * self.feature_norm).square())

    def geometry(self) -> Float[Tensor, " batch"]:
        """``tr(Wᵀ H_z W) / tr H_z``: the part of the head's geometry, without confidence; NaN where ``tr H_z`` is 0."""
        scale = (self.curvature.log_scale - self.logit_trace.log_scale).exp()
        return self.curvature.value / self.logit_trace.value * scale


def relative_flatness(
    features: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, " batch"] | Shaped[Tensor, "batch classes"] | None = None,
    *,
    variant: FlatnessVariant = "neuronwise",
    loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
    bias: Float[Tensor, " classes"] | None = None,
    log: bool = False,
) -> Float[Tensor, " batch"]:
    r"""Relative flatness of each sample's loss in the weight of a linear head; small is flat.

    ===============  ====================================  ==========================
    variant          closed form                           source
    ===============  ====================================  ==========================
    ``neuronwise``   ``‖φ‖² tr(Wᵀ H_z W)``                 Petzka et al. 2021, Def. 3
    ``layerwise``    ``‖W‖_F² ‖φ‖² tr H_z``                Walter et al. 2025
    ``maxeig``       ``‖W‖_F² ‖φ‖² λ_max(H_z)``            Walter et al. 2024
    ===============  ====================================  ==========================

    ``neuronwise`` and ``layerwise`` are linear in the Hessian, so that their mean over samples is the value of the
    mean loss. ``maxeig`` is not: its mean over samples only bounds the value of the mean loss from above. For
    cross-entropy no target is needed, since the Hessian does not depend on it. The result is differentiable.

    The relative error is below 1e-5 for float32 inputs at every confidence; cross-entropy never gives a negative value.

    Args:
        features: input ``φ`` of the head.
        weight: weight ``W`` of the head.
        logits: output ``z`` of the head, before any softmax.
        target: what the loss is given: class indices, or soft labels and regression targets as wide as ``logits``.
            Needed where the Hessian depends on it, and for ``ignore_index``.
        variant: which relative flatness.
        loss: a name, a torch loss module, a :class:`~lightning_flatness.functional.losses.LogitLoss` (temperature,
            class weights, …) or a function of ``(logits, target)`` that returns one loss per sample.
        bias: bias ``b`` of the head if it belongs to the parameters whose flatness is measured: then ``W`` is replaced
            by ``[W, b]`` and ``φ`` by ``[φ, 1]``. By default only ``W`` belongs to them.
        log: return the natural logarithm, which does not underflow.

    Returns:
        Relative flatness in units of the loss, float64 (float32 on MPS); 0 (-inf) for samples with the ignored target.

    Raises:
        ValueError: if shapes do not fit, a value is not finite, a target is out of range or missing, or the loss or
            the variant is unknown.

    References:
        Petzka et al., *Relative Flatness and Generalization*, NeurIPS 2021.
        Walter et al., *The Uncanny Valley*, arXiv 2405.16918.
        Walter et al., *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231.

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> relative_flatness(features, weight, features @ weight.T)
        tensor([1.9661], dtype=torch.float64)
        >>> confident = torch.tensor([[0.0, 100.0]])
        >>> relative_flatness(features, weight, confident, log=True)
        tensor([-97.6974], dtype=torch.float64)
    """
    variant = check_variant(variant)
    logit_loss = resolve_loss(loss)
    check_head_inputs(features, weight, logits, bias)
    check_finite(features=features, weight=weight, logits=logits, bias=bias)
    target = check_target(logit_loss, logits, target)
    value = unchecked_relative_flatness(features, weight, logits, target, variant, logit_loss, bias)
    return value.log() if log else value.linear()


def feature_hessian_trace(
    weight: Float[Tensor, "classes dim"],
    logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, " batch"] | Shaped[Tensor, "batch classes"] | None = None,
    *,
    loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
) -> Float[Tensor, " batch"]:
    """Trace of the loss Hessian in the features, ``tr ∇²_φ ℓ = tr(Wᵀ H_z W)``, of each sample.

    Neuronwise relative flatness is this times ``‖φ‖²``.

    Args:
        weight: weight ``W`` of the head.
        logits: output ``z`` of the head, before any softmax.
        target: as for :func:`relative_flatness`.
        loss: as for :func:`relative_flatness`.

    Returns:
        Traces in units of loss over squared features, float64 (float32 on MPS).

    Raises:
        ValueError: as for :func:`relative_flatness`.

    Example:
        >>> import torch
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2))
        tensor([0.5000], dtype=torch.float64)
    """
    logit_loss = resolve_loss(loss)
    check_head(weight, logits)
    check_finite(weight=weight, logits=logits)
    target = check_target(logit_loss, logits, target)
    with full_precision(logits.device):
        return _traces(logits, target, logit_loss, Head(weight)).curvature.linear()


def flatness_factors(
    features: Float[Tensor, "batch dim"],
    weight: Float[Tensor, "classes dim"],
    logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, " batch"] | Shaped[Tensor, "batch classes"] | None = None,
    *,
    loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
    bias: Float[Tensor, " classes"] | None = None,
) -> FlatnessFactors:
    """Evaluate every factor of neuronwise and layerwise relative flatness in one pass.

    Values are not checked, as :func:`relative_flatness` does, which saves waiting for the device: a sample with a
    number that is not finite gives one back, and a target out of range is not noticed.

    Args:
        features: input ``φ`` of the head.
        weight: weight ``W`` of the head.
        logits: output ``z`` of the head, before any softmax.
        target: as for :func:`relative_flatness`.
        loss: as for :func:`relative_flatness`.
        bias: as for :func:`relative_flatness`.

    Returns:
        The factors.

    Raises:
        ValueError: if shapes do not fit, a target is missing, or the loss is unknown.

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 2.0]])
        >>> factors = flatness_factors(features, torch.eye(2), features)
        >>> factors.neuronwise().linear(), factors.logit_trace.linear()
        (tensor([1.9661], dtype=torch.float64), tensor([0.3932], dtype=torch.float64))
    """
    logit_loss = resolve_loss(loss)
    check_head_inputs(features, weight, logits, bias)
    target = check_target(logit_loss, logits, target, values=False)
    with full_precision(logits.device):
        head = Head(weight, bias)
        traces = _traces(logits, target, logit_loss, head)
        return FlatnessFactors(
            traces.curvature, traces.logit_trace, head.feature_sq_norms(features).sqrt(), head.sq_norm().sqrt()
        )


def unchecked_relative_flatness(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    target: Tensor | None,
    variant: FlatnessVariant,
    loss: LogitLoss,
    bias: Tensor | None,
) -> LogScaled:
    """:func:`relative_flatness` of arguments known to fit."""
    with full_precision(logits.device):
        head = Head(weight, bias)
        feature_sq_norms = head.feature_sq_norms(features)
        if variant == "neuronwise":
            curvature = _traces(logits, target, loss, head).curvature
            return curvature.times(feature_sq_norms)
        scale = head.sq_norm() * feature_sq_norms
        if variant == "layerwise":
            return _traces(logits, target, loss, Head.without_columns(logits)).logit_trace.times(scale)
        return loss.top_eigenvalue(logits, target).times(scale)


def _traces(logits: Tensor, target: Tensor | None, loss: LogitLoss, head: Head) -> Traces:
    parts = [
        loss.traces(logits[rows], None if target is None else target[rows], head)
        for rows in chunks(len(logits), TILE_ELEMENTS // max(1024, head.dim))
    ]
    return parts[0] if len(parts) == 1 else Traces(*(LogScaled.cat(column) for column in zip(*parts, strict=True)))
