r"""Branch and bound over the angle to one direction: what closed forms leave, for the few samples that need it.

The unit ball (lengths in units of ``ρ``) is cut into slabs ``low ≤ s ≤ high``, ``s = v·u``, by planes across a unit
vector ``v``. Within a slab, each ``e^{a_j·u}`` lies below the parabola that touches it at ``a_j·u = α_j·middle``, with
``α_j = a_j·v``, and meets it at the largest ``a_j·u`` of the slab (``ψ`` increases). Their sum is a parabola in ``u``,
which is maximised along and across ``v`` separately. Slabs whose bound is far above what ascent has found, a lower
bound of the true maximum, are cut once more.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_flatness.functional._local_loss import LeadingClasses, log_psi

_ROUNDS, _PARTS = 2, 8
_GRAM_ROUNDING = 1e-13  # of an inner product, relative to the lengths
_LARGEST_EXPONENT = 500.0  # leaves room for factors and sums below the largest float64


class Gain(NamedTuple):
    """``S(u) = e^log_rest + Σ p_j (e^{a_j·u} − 1)`` over the unit ball, for the leading classes."""

    log_prob: Float[Tensor, "batch leading"]
    gram: Float[Tensor, "batch leading leading"]
    reach: Float[Tensor, "batch leading"]
    log_rest: Float[Tensor, " batch"]
    log_unit: Float[Tensor, " batch"]  # S is evaluated in units of e^log_unit, 0 unless it could overflow

    @classmethod
    def of(cls, leading: LeadingClasses, log_rest: Float[Tensor, " batch"]) -> "Gain":
        """Choose the unit."""
        largest = torch.maximum((leading.log_prob + leading.reach).amax(1), log_rest)
        unit = (largest - _LARGEST_EXPONENT).clamp(min=0)
        return cls(leading.log_prob, leading.gram, leading.reach, log_rest, unit)

    def rows(self, index: Tensor) -> "Gain":
        """Keep some samples."""
        return Gain(*(tensor[index] for tensor in self))

    def sum(self, exponents: Float[Tensor, "batch points leading"]) -> Float[Tensor, "batch points"]:
        """``S`` at points with the given ``a_j·u``, in units of ``e^log_unit``."""
        unit = self.log_unit.view(-1, 1, 1)
        scales = (self.log_prob.unsqueeze(1) - unit + exponents.clamp(min=0)).exp()
        changes = -torch.expm1(-exponents.abs()) * exponents.sign()  # with the scales: e^x − 1, without overflow
        return (scales * changes).sum(2) + (self.log_rest - self.log_unit).exp().unsqueeze(1)

    def loss(self, total: Float[Tensor, "batch points"]) -> Float[Tensor, "batch points"]:
        """``log(1 + S)`` of ``S`` in units of ``e^log_unit``."""
        unit = self.log_unit.unsqueeze(1)
        return unit + torch.log1p(torch.expm1(-unit) + total)


def ascend(
    gain: Gain, weights: Float[Tensor, "batch starts leading"], iterations: int
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch leading"]]:
    """Largest loss increase found by moving along the gradient, from ``u ∝ Σ c_j a_j`` for each start ``c``.

    ``log(1 + S)`` is convex, so that every step to the point of the sphere in direction of the gradient climbs.

    Returns:
        The increase, and weights ``c`` of the direction at which it was found.
    """
    for _ in range(iterations):
        images = weights @ gain.gram
        lengths = (images * weights).sum(2, keepdim=True).clamp(min=1e-300).sqrt()
        exponents = images / lengths
        weights = (gain.log_prob.unsqueeze(1) + exponents).softmax(2)
    losses = gain.loss(gain.sum(exponents))
    best = losses.argmax(1)
    samples = torch.arange(len(best), device=best.device)
    return losses[samples, best], weights[samples, best]


class _Axis(NamedTuple):
    """A sum of exponentials seen along one direction ``v`` of each sample."""

    gain: Gain
    along: Float[Tensor, "batch leading"]  # α_j = a_j·v
    across: Float[Tensor, "batch leading"]  # length of a_j without its part along v
    cross_gram: Float[Tensor, "batch leading leading"]  # inner products of what is left

    @classmethod
    def of(cls, gain: Gain, weights: Float[Tensor, "batch leading"]) -> "_Axis":
        # A vector v that is a hair too short is a unit vector of a space with one more dimension: nothing is lost.
        lengths = _length(weights, gain.gram, gain.reach).clamp(min=1e-150)
        along = (gain.gram @ weights.unsqueeze(2)).squeeze(2) / lengths.unsqueeze(1)
        cross_gram = gain.gram - along.unsqueeze(2) * along.unsqueeze(1)
        sq_across = cross_gram.diagonal(dim1=1, dim2=2).clamp(min=0) + _GRAM_ROUNDING * gain.reach.square()
        return cls(gain, along, sq_across.sqrt(), cross_gram)

    def rows(self, index: Tensor) -> "_Axis":
        return _Axis(self.gain.rows(index), *(tensor[index] for tensor in self[1:]))


def branch_and_bound(
    gain: Gain, weights: Float[Tensor, "batch leading"], goal: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Bound ``max log(1 + S)``, cutting slabs whose bound is above ``goal`` once more.

    Args:
        gain: what is maximised.
        weights: the axis is ``v ∝ Σ c_j a_j``.
        goal: bound that is good enough.

    Returns:
        The bound.
    """
    axis = _Axis.of(gain, weights)
    sample = torch.arange(len(goal), device=goal.device)
    start, width = torch.zeros_like(goal), math.pi  # angles to v
    result = torch.full_like(goal, -torch.inf)
    for _ in range(_ROUNDS):
        width /= _PARTS
        sample = sample.repeat_interleave(_PARTS)
        start = (start.unsqueeze(1) + width * torch.arange(_PARTS).to(start)).flatten()
        bounds = _slab_bound(axis.rows(sample), start, start + width)
        open_ = bounds > goal[sample]
        result.scatter_reduce_(0, sample[~open_], bounds[~open_], "amax")
        sample, start, bounds = sample[open_], start[open_], bounds[open_]
    return result.scatter_reduce_(0, sample, bounds, "amax")


class _Parabola(NamedTuple):
    """``value + slope t + curvature t² + top (1 − s²)`` with ``t = s − middle``."""

    value: Float[Tensor, " batch"]
    slope: Float[Tensor, " batch"]
    curvature: Float[Tensor, " batch"]
    top: Float[Tensor, " batch"]  # largest curvature across v, where the squared length is 1 − s² at most

    def at(self, s: Tensor, middle: Tensor) -> Tensor:
        step = s - middle
        return self.value + self.slope * step + self.curvature * step.square() + self.top * (1 - s.square())

    def largest(self, low: Tensor, high: Tensor, middle: Tensor) -> Tensor:
        """Maximum over ``low ≤ s ≤ high``; a stationary point outside, or a minimum, does no harm."""
        bend = self.curvature - self.top
        stationary = (2 * self.curvature * middle - self.slope) / (2 * bend)
        inside = torch.minimum(torch.maximum(stationary.nan_to_num(), low), high)
        return torch.stack([self.at(s, middle) for s in (low, high, inside)]).amax(0)


def _slab_bound(axis: _Axis, start: Float[Tensor, " batch"], end: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Bound of ``log(1 + S)`` where the angle to the axis is between ``start`` and ``end``.

    With ``u = s v + w``, ``t = s − middle``, ``P_j`` the terms and ``C_j`` the bends, ``S`` is at most a parabola in
    ``s``, plus ``λ_max(Σ C_j ã_j ã_jᵀ) ‖w‖²``, plus ``‖Σ (P_j + 2 t C_j α_j) ã_j‖ ‖w‖``, which is convex in ``t``.
    """
    low, middle, high = end.cos(), ((start + end) / 2).cos(), start.cos()
    exponents = axis.along * middle.unsqueeze(1)
    log_terms = axis.gain.log_prob - axis.gain.log_unit.unsqueeze(1) + exponents
    terms = log_terms.exp()
    bends = (log_terms + log_psi(_largest_step(axis, low, high) - exponents)).exp()
    roots = bends.sqrt()
    parabola = _Parabola(
        value=axis.gain.sum(exponents.unsqueeze(1)).squeeze(1),
        slope=(terms * axis.along).sum(1),
        curvature=(bends * axis.along.square()).sum(1),
        top=torch.linalg.eigvalsh(roots.unsqueeze(2) * axis.cross_gram * roots.unsqueeze(1))[:, -1].clamp(min=0),
    )
    widest = (1 - torch.where(low * high < 0, 0, torch.minimum(low.abs(), high.abs())).square()).clamp(min=0).sqrt()
    pulls = [
        _length(terms + 2 * (s - middle).unsqueeze(1) * bends * axis.along, axis.cross_gram, axis.gain.reach)
        for s in (low, high)
    ]
    total = parabola.largest(low, high, middle) + widest * torch.maximum(*pulls)
    return axis.gain.loss(total.unsqueeze(1)).squeeze(1)


def _largest_step(axis: _Axis, low: Tensor, high: Tensor) -> Float[Tensor, "batch leading"]:
    """Largest ``a_j·u`` in the slab."""
    best = axis.along / axis.gain.reach.clamp(min=1e-300)
    best = torch.minimum(torch.maximum(best, low.unsqueeze(1)), high.unsqueeze(1))
    return axis.along * best + axis.across * (1 - best.square()).clamp(min=0).sqrt()


def _length(
    weights: Float[Tensor, "batch leading"],
    gram: Float[Tensor, "batch leading leading"],
    reach: Float[Tensor, "batch leading"],
) -> Float[Tensor, " batch"]:
    """``‖Σ c_j a_j‖``, and the root of what rounding can take from its square where the ``a_j`` cancel."""
    squared = ((gram @ weights.unsqueeze(2)).squeeze(2) * weights).sum(1).clamp(min=0)
    return (squared + _GRAM_ROUNDING * (weights.abs() * reach).sum(1).square()).sqrt()
