"""Losses of the softmax probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._logit_loss import (
    HessianProduct,
    LogitLoss,
    LossFunction,
    Traces,
    check_class_range,
    check_classes,
    check_same_shape,
    check_several_classes,
    check_weight,
)
from lightning_flatness.functional._numerics import LogScaled, numbers, recording, sq_norm, wide
from lightning_flatness.functional._softmax import SoftmaxMoments, softmax_moments, softmax_top_eigenvalue


@dataclass(frozen=True, eq=False)
class CrossEntropy(LogitLoss):
    r"""Softmax cross-entropy, ``H_z = a (diag p − ppᵀ) / T²`` with ``p = softmax(z/T)``.

    Label smoothing and soft labels leave the Hessian as it is. Class weights scale it per sample by ``a``, the weight
    of the sample's class (its mean under the smoothed or soft label). The mean over samples is unweighted, whereas
    ``torch.nn.CrossEntropyLoss`` divides by the summed weights.

    Args:
        weight: weight of each class, or None.
        ignore_index: samples with this target do not count.
        label_smoothing: in [0, 1]; matters only beside ``weight``.
        temperature: the loss is the cross-entropy of ``z / temperature``.

    Raises:
        ValueError: if ``label_smoothing`` is not in [0, 1], or ``temperature`` not positive.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), loss=CrossEntropy(temperature=2.0))
        tensor([0.1250], dtype=torch.float64)
    """

    weight: Tensor | Sequence[float] | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1], got {self.label_smoothing}.")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be > 0, got {self.temperature}.")

    @property
    @override
    def needs_target(self) -> bool:
        return self.weight is not None

    @property
    @override
    def target_is_class(self) -> bool:
        return True

    @override
    def kept(self, target: Tensor | None) -> Bool[Tensor, " batch"] | None:
        if target is None or target.is_floating_point():
            return None
        return target != self.ignore_index

    @override
    def check_logits(self, logits: Tensor) -> None:
        check_several_classes(logits)
        check_weight("weight", self.weight, logits)

    @override
    def check_target(self, logits: Tensor, target: Tensor) -> None:
        if target.is_floating_point():
            check_same_shape(
                logits, target, " Floats are probabilities of the classes; pass the loss of a regression, e.g. 'mse'."
            )
        else:
            check_classes(logits, target)

    @override
    def check_target_values(self, logits: Tensor, target: Tensor) -> None:
        if not target.is_floating_point():
            check_class_range(logits, target, self.ignore_index)

    @override
    def traces(self, logits: Float[Tensor, "batch classes"], target: Tensor | None, head: Head) -> Traces:
        moments = softmax_moments(logits, head, self.temperature)
        scale = self._scale(logits, target)
        return Traces(moments.trace().times(scale), moments.variance().times(scale))

    @override
    def top_eigenvalue(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> LogScaled:
        return softmax_top_eigenvalue(logits, self.temperature).times(self._scale(logits, target))

    @override
    def product(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> HessianProduct:
        scale = self._scale(logits, target).to(logits.dtype).unsqueeze(1)
        covariance = _softmax_covariance(logits / self.temperature)
        return lambda vectors: scale * covariance(vectors)

    def _scale(self, logits: Tensor, target: Tensor | None) -> Float[Tensor, " batch"]:
        """``a / T²``; 0 for ignored samples."""
        scale = wide(logits.new_ones(logits.shape[0]))
        if target is not None:
            if self.weight is not None:
                scale = self._label_weight(logits, target)
            kept = self.kept(target)
            scale = scale if kept is None else scale * kept
        return scale / self.temperature**2

    def _label_weight(self, logits: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
        assert self.weight is not None
        weight = numbers(self.weight, logits)
        soft = target.is_floating_point()
        of_label = wide(target) @ weight if soft else weight[target.clamp(0, logits.shape[1] - 1)]
        return (1 - self.label_smoothing) * of_label + self.label_smoothing * weight.mean()


@dataclass(frozen=True, eq=False)
class TrueClassLoss(LogitLoss):
    r"""Any loss ``g(log p_y)`` of the true class's log-probability (poly-1, generalised cross-entropy, …).

    ``H_z = g'' (e_y − p)(e_y − p)ᵀ − g' (diag p − ppᵀ)``, with ``g'`` and ``g''`` by automatic differentiation of a
    scalar. Its traces can be negative.

    Args:
        function: ``g``; maps log-probabilities ``(batch,)`` and classes ``(batch,)`` to losses ``(batch,)``, with
            differentiable operations.
        ignore_index: samples with this target do not count.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> generalised = TrueClassLoss(lambda log_prob, _: (1 - (0.7 * log_prob).exp()) / 0.7)
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), torch.tensor([0]), loss=generalised)
        tensor([0.0923], dtype=torch.float64)
    """

    function: LossFunction
    ignore_index: int = -100

    @property
    @override
    def needs_target(self) -> bool:
        return True

    @property
    @override
    def target_is_class(self) -> bool:
        return True

    @override
    def kept(self, target: Tensor | None) -> Bool[Tensor, " batch"] | None:
        return None if target is None else target != self.ignore_index

    @override
    def check_logits(self, logits: Tensor) -> None:
        check_several_classes(logits)

    @override
    def check_target(self, logits: Tensor, target: Tensor) -> None:
        check_classes(logits, target)

    @override
    def check_target_values(self, logits: Tensor, target: Tensor) -> None:
        check_class_range(logits, target, self.ignore_index)

    @override
    def traces(self, logits: Float[Tensor, "batch classes"], target: Tensor | None, head: Head) -> Traces:
        kept, target = self._kept_classes(logits, target)
        moments = softmax_moments(logits, head)
        is_first = target == moments.first
        log_prob = _log_prob(logits, target, moments)
        slope, bend = (derivative * kept for derivative in self._derivatives(log_prob, target))
        rest = moments.log_rest.exp()
        others = rest.square() * (1 + moments.rest_collision)  # ‖e_y − p‖² where y is the top class
        prob = log_prob.exp()
        sq_probs = moments.log_first.exp().square() + rest.square() * moments.rest_collision
        residual = torch.where(is_first, others, (1 - prob).square() + sq_probs - prob.square())
        offset = rest.unsqueeze(1) * wide(moments.rest_offset)
        distance = sq_norm(wide(head.rows(target) - head.rows(moments.first)) - offset)
        return Traces(
            LogScaled.of(bend * residual - slope * moments.trace().linear()),
            LogScaled.of(bend * distance - slope * moments.variance().linear()),
        )

    @override
    def product(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> HessianProduct:
        kept, target = self._kept_classes(logits, target)
        covariance = _softmax_covariance(logits)
        moments = softmax_moments(logits, Head.without_columns(logits))
        log_prob = _log_prob(logits, target, moments)
        slope, bend = (
            (derivative * kept).to(logits.dtype).unsqueeze(1) for derivative in self._derivatives(log_prob, target)
        )
        own = torch.where(target == moments.first, moments.log_rest.exp(), -torch.expm1(log_prob))
        residual = (-logits.softmax(1)).scatter(1, target.unsqueeze(1), own.to(logits.dtype).unsqueeze(1))
        return lambda vectors: bend * residual * (residual * vectors).sum(1, keepdim=True) - slope * covariance(vectors)

    def _kept_classes(self, logits: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = self.kept(target)
        assert kept is not None
        assert target is not None
        return kept, target.clamp(0, logits.shape[1] - 1)

    def _derivatives(self, log_prob: Float[Tensor, " batch"], target: Tensor) -> tuple[Tensor, Tensor]:
        """``g'`` and ``g''``; where ``1 − p_y`` is below 1e-120, those at 1e-120, whose powers do not overflow."""
        with recording(log_prob, target) as (point, classes, keep_graph):
            below_one = point.clamp(max=-(torch.finfo(point.dtype).tiny ** 0.39))
            (slope,) = torch.autograd.grad(self.function(below_one, classes).sum(), below_one, create_graph=True)
            if not slope.requires_grad:
                return slope, torch.zeros_like(slope)
            (bend,) = torch.autograd.grad(slope.sum(), below_one, create_graph=keep_graph, materialize_grads=True)
            return (slope, bend) if keep_graph else (slope.detach(), bend)


class Focal(TrueClassLoss):
    """Focal loss ``−α_y (1 − p_y)^γ log p_y`` on the softmax (Lin et al., ICCV 2017, eq. 4).

    Args:
        gamma: exponent, ≥ 0; 0 is cross-entropy.
        alpha: weight of each class, or None.
        ignore_index: samples with this target do not count.

    Raises:
        ValueError: if ``gamma`` is negative.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> feature_hessian_trace(torch.eye(2), torch.zeros(1, 2), torch.tensor([0]), loss=Focal(gamma=0.0))
        tensor([0.5000], dtype=torch.float64)
    """

    alpha: Tensor | Sequence[float] | None

    def __init__(
        self, gamma: float = 2.0, alpha: Tensor | Sequence[float] | None = None, ignore_index: int = -100
    ) -> None:
        if not gamma >= 0:
            raise ValueError(f"`gamma` must be >= 0, got {gamma}.")

        super().__init__(partial(_focal, gamma=gamma, alpha=alpha), ignore_index)
        object.__setattr__(self, "alpha", alpha)

    @override
    def check_logits(self, logits: Tensor) -> None:
        super().check_logits(logits)
        check_weight("alpha", self.alpha, logits)


def _focal(log_prob: Tensor, target: Tensor, gamma: float, alpha: Tensor | Sequence[float] | None) -> Tensor:
    # The derivative of expm1 is rounded to 0 where its argument is far below 0.
    others = torch.where(log_prob < -1, 1 - log_prob.exp(), -torch.expm1(log_prob))
    loss = -(others**gamma) * log_prob
    return loss if alpha is None else loss * torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)[target]


def _log_prob(logits: Tensor, target: Tensor, moments: SoftmaxMoments) -> Float[Tensor, " batch"]:
    """Log-probability of the target, whatever its size."""
    gap = wide(logits.gather(1, target.unsqueeze(1))) - wide(logits.gather(1, moments.first.unsqueeze(1)))
    return gap.squeeze(1) + moments.log_first


def _softmax_covariance(logits: Float[Tensor, "batch classes"]) -> HessianProduct:
    """``v ↦ (diag p − ppᵀ) v``, taken around the top class so that confident rows do not cancel."""
    probs = logits.softmax(1)
    first = logits.argmax(1, keepdim=True)

    def apply(vectors: Tensor) -> Tensor:
        offsets = vectors - vectors.gather(1, first)
        return probs * (offsets - (probs * offsets).sum(1, keepdim=True))

    return apply
