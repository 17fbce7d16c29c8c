"""Upper bounds on the largest loss increase within a ball of features, as functions of its radius."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_flatness.functional._bounds_branch import Gain, ascend, branch_and_bound
from lightning_flatness.functional._bounds_kernel import log_kernel_bound
from lightning_flatness.functional._local_loss import LeadingClasses, LocalLoss, log_excess, log_expm1

Radii = Float[Tensor, " batch"]

_SLACK = 1.1  # bound over what ascent finds, up to which the closed forms are good enough
_MANY_CLASSES = 63  # told apart where they are not
_STARTS = 4  # leading classes towards which ascent starts
_QUICK_STEPS, _STEPS = 3, 12
_REACHES = (1e-100, 1e4)  # beyond, squares underflow or exponents are rounded too much
_ROUNDING = 1e-12  # relative error of an exponential, per unit of its exponent


class LossBound(Protocol):
    """A bound that grows with the radius, and where it takes a given value."""

    def at(self, radius: Radii) -> Float[Tensor, " batch"]:
        """Bound on the loss increase within ``radius``."""

    def bracket(self, increase: Float[Tensor, " batch"]) -> tuple[Radii, Radii]:
        """Radii at which the bound is at most, and at least, ``increase``; the latter may be infinite."""


@dataclass(frozen=True, eq=False)
class SoundBound:
    """A bound that no displacement exceeds."""

    local: LocalLoss
    formula: Callable[[LocalLoss, Radii], Float[Tensor, " batch"]]

    def at(self, radius: Radii) -> Float[Tensor, " batch"]:
        """Evaluate the formula; infinite where ``ρ ‖a_j‖`` is no number any more."""
        overflows = (radius * self.local.lengths.amax(1)).isinf()
        return self.formula(self.local, radius.masked_fill(overflows, 0.0)).masked_fill(overflows, torch.inf)

    def bracket(self, increase: Float[Tensor, " batch"]) -> tuple[Radii, Radii]:
        """Every formula is at most ``log(1 + Σ p_j (e^{ρD} − 1))``, ``D`` the largest ``‖a_j‖``, and at least the loss.

        That loss is convex, hence at least ``ρ‖g‖``, and at least that of each class alone.
        """
        local = self.local
        log_ratio = log_expm1(increase) - local.log_prob.logsumexp(1)
        low = torch.logaddexp(torch.zeros_like(increase), log_ratio) / local.lengths.amax(1)
        single = (increase.unsqueeze(1) - local.log_prob) / local.lengths
        linear = increase * (-local.log_gradient_norm).exp()
        return low, torch.minimum(single.amin(1), linear)


@dataclass(frozen=True, eq=False)
class TaylorBound:
    """``quadratic ρ² + cubic ρ³``: second and third order at a minimum of the loss, without the first."""

    quadratic: Float[Tensor, " batch"]
    cubic: Float[Tensor, " batch"]

    def at(self, radius: Radii) -> Float[Tensor, " batch"]:
        """Evaluate the polynomial."""
        return radius.square() * (self.quadratic + self.cubic * radius)

    def bracket(self, increase: Float[Tensor, " batch"]) -> tuple[Radii, Radii]:
        """One of the two terms is at least half of the sum, and none is more."""
        low, high = (
            torch.minimum((part / self.quadratic).sqrt(), (part / self.cubic) ** (1 / 3))
            for part in (increase / 2, increase)
        )
        return low, high


def bennett(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    """``log(1 + ρ‖g‖ + ρ² λ_max(M))``, ``M = Σ p_j ψ(ρ‖a_j‖) a_j a_jᵀ``; the trace for all but the leading classes."""
    return _bennett(local, radius, local.leading(radius))


def trace(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    """``log(1 + ρ‖g‖ + ρ² tr M)``."""
    terms = local.log_prob + log_excess(radius.unsqueeze(1) * local.lengths)
    return _with_linear_part(local, radius, terms.logsumexp(1))


def refined(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    """:func:`bennett`; where ascent stays far below it, the kernel bound; there again, branch and bound."""
    leading = local.leading(radius)
    bound = _bennett(local, radius, leading)
    gain = Gain.of(leading, torch.full_like(radius, -torch.inf))
    reached, _ = ascend(gain, torch.stack(_soft_starts(gain), dim=1), _QUICK_STEPS)
    largest = leading.reach.amax(1)
    sensible = (_REACHES[0] < largest) & (largest < _REACHES[1])
    # Near a stationary point, what both bounds add up cancels: errors are those of all classes together.
    together = torch.logaddexp(torch.zeros_like(radius), _log_sum(local, radius))
    rounding = _ROUNDING * (1 + largest) * together
    for tighter in (_kernel, _searched):
        open_ = (sensible & (bound > _SLACK * reached)).nonzero().squeeze(1)
        for rows in torch.split(open_, _open_rows(local)) if len(open_) else ():
            found = tighter(local.rows(rows), radius[rows])
            bound[rows] = torch.fmin(bound[rows], found + rounding[rows])
    return bound


def _log_sum(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    """``log Σ p_j (e^{R_j} − 1)``, as if all classes could reach furthest at once."""
    return (local.log_prob + log_expm1(radius.unsqueeze(1) * local.lengths)).logsumexp(1)


def _open_rows(local: LocalLoss) -> int:
    """Samples at a time, such that a matrix for each of eight slabs of each takes 16 MiB at most."""
    return 2**18 // min(_MANY_CLASSES, local.log_prob.shape[1]) ** 2


def _kernel(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    leading, log_rest = _many_leading(local, radius)
    return torch.logaddexp(torch.zeros_like(radius), log_kernel_bound(leading, log_rest))


def _searched(local: LocalLoss, radius: Radii) -> Float[Tensor, " batch"]:
    """Branch and bound along the best direction that ascent finds; where that does not do, along the gradient."""
    gain = Gain.of(*_many_leading(local, radius))
    reached, best = ascend(gain, _starts(gain), _STEPS)
    goal = _SLACK * reached
    bound = branch_and_bound(gain, best, goal)
    open_ = (bound > goal).nonzero().squeeze(1)
    if len(open_):
        along_gradient = branch_and_bound(gain.rows(open_), _soft_starts(gain)[0][open_], goal[open_])
        bound[open_] = torch.fmin(bound[open_], along_gradient)
    return bound


def _many_leading(local: LocalLoss, radius: Radii) -> tuple[LeadingClasses, Float[Tensor, " batch"]]:
    """More classes than usual, and ``log Σ p_j (e^{R_j} − 1)`` of the rest."""
    leading = local.leading(radius, _MANY_CLASSES)
    linear = (local.log_prob + local.lengths.log()).scatter(1, leading.classes, -torch.inf).logsumexp(1)
    return leading, torch.logaddexp(leading.log_rest, linear + radius.log())


def _soft_starts(gain: Gain) -> tuple[Tensor, Tensor]:
    """Weights of the gradient, and of what each class alone can reach."""
    return gain.log_prob.softmax(1), (gain.log_prob + gain.reach).softmax(1)


def _starts(gain: Gain) -> Float[Tensor, "batch starts leading"]:
    """The same, and the classes that alone can raise the loss most."""
    classes = gain.log_prob.shape[1]
    soft = torch.stack(_soft_starts(gain), dim=1)
    singles = (gain.log_prob + gain.reach).topk(min(_STARTS, classes), dim=1).indices
    return torch.cat([one_hot(singles, classes).to(soft), soft], dim=1)


def _bennett(local: LocalLoss, radius: Radii, leading: LeadingClasses) -> Float[Tensor, " batch"]:
    terms = leading.log_prob + log_excess(leading.reach)
    shift = terms.amax(1, keepdim=True).nan_to_num(neginf=0.0)
    roots = ((terms - shift) / 2).exp()
    top = torch.linalg.eigvalsh(roots.unsqueeze(2) * leading.cosines * roots.unsqueeze(1))[:, -1].clamp(min=0)
    return _with_linear_part(local, radius, torch.logaddexp(top.log() + shift.squeeze(1), leading.log_rest))


def _with_linear_part(local: LocalLoss, radius: Radii, log_quadratic: Float[Tensor, " batch"]) -> Tensor:
    log_sum = torch.logaddexp(radius.log() + local.log_gradient_norm, log_quadratic)
    return torch.logaddexp(torch.zeros_like(radius), log_sum)
