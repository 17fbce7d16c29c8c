r"""Softmax moments that stay exact for confident predictions.

The textbook forms ``Σ p‖w‖² − ‖Σ p w‖²`` and ``1 − Σ p²`` lose every digit as soon as one class takes all the
probability. Here the two largest classes are split off by the law of total variance, so that only non-negative
terms are ever added; the classes behind them are described by their own softmax, its mean row and its variance.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._numerics import (
    TILE_ELEMENTS,
    LogScaled,
    chunks,
    sq_norm,
    wide,
)

# float32 rounds the variance of the classes behind the top two by about 5e-7 of their mean squared norm. Beyond this
# ratio of that norm to the whole variance it would show in the sixth digit: such rows are evaluated in float64.
_CANCELLATION_LIMIT = 4.0


class SoftmaxMoments(NamedTuple):
    """Moments of the head's rows under ``p = softmax(z / temperature)``; ``q`` is all but the top class.

    ``variance = q · inner_variance`` and ``tr(diag p − ppᵀ) = q · inner_trace``.
    """

    first: Int[Tensor, " batch"]
    log_rest: Float[Tensor, " batch"]  # log q
    log_first: Float[Tensor, " batch"]  # log p of the top class
    inner_trace: Float[Tensor, " batch"]
    rest_collision: Float[Tensor, " batch"]  # Σ π² over all classes but the top one
    inner_variance: Float[Tensor, " batch"]
    rest_offset: Float[Tensor, "batch dim"]  # mean row of all but the top one, minus the top row

    def variance(self) -> LogScaled:
        """``Σ_k p_k ‖w_k − w̄‖²``."""
        return LogScaled(self.inner_variance, self.log_rest)

    def trace(self) -> LogScaled:
        """``Σ_k p_k (1 − p_k)``."""
        return LogScaled(self.inner_trace, self.log_rest)


class _TopTwo(NamedTuple):
    """The largest logits of each row; gaps are differences of logits over the temperature."""

    first: Int[Tensor, " batch"]
    second: Int[Tensor, " batch"]
    reference: Float[Tensor, " batch"]  # third largest logit
    gap: Float[Tensor, " batch"]  # second − first, ≤ 0
    third_gap: Float[Tensor, " batch"]  # third − second, ≤ 0


class _Remainder(NamedTuple):
    """Sums over the classes behind the top two, with terms ``e_k = exp((z_k − reference) / temperature)``."""

    mass: Float[Tensor, " batch"]  # Σ e
    sq_mass: Float[Tensor, " batch"]  # Σ e²
    mean: Float[Tensor, "batch dim"]  # Σ e (w − centre) / Σ e
    mean_sq_norm: Float[Tensor, " batch"]  # Σ e ‖w − centre‖² / Σ e


def softmax_moments(logits: Float[Tensor, "batch classes"], head: Head, temperature: float = 1.0) -> SoftmaxMoments:
    """Evaluate the moments of one chunk of rows.

    Args:
        logits: at least two classes.
        head: rows of the classes.
        temperature: the logits are divided by it.

    Returns:
        Moments in float64 (float32 on MPS).
    """
    dtype = torch.promote_types(torch.promote_types(logits.dtype, head.weight.dtype), torch.float32)
    moments, doubtful = _evaluate(logits, head, temperature, dtype)
    if head.dim == 0 or dtype == torch.float64 or logits.device.type == "mps" or not doubtful.any():
        return moments
    rows = doubtful.nonzero().squeeze(1)
    exact, _ = _evaluate(logits[rows], head, temperature, torch.float64)
    pairs = zip(moments, exact, strict=True)
    return SoftmaxMoments(*(old.index_copy(0, rows, new.to(old.dtype)) for old, new in pairs))


def _evaluate(
    logits: Float[Tensor, "batch classes"], head: Head, temperature: float, dtype: torch.dtype
) -> tuple[SoftmaxMoments, Bool[Tensor, " batch"]]:
    """Put the second class, then the first, back beside the remainder; say which rows rounding may have spoiled."""
    top = _top_two(logits, temperature)
    if logits.shape[1] == 2:
        return _two_class_moments(top, head), torch.zeros_like(top.gap, dtype=torch.bool)
    rest = _remainder(logits, top, head, temperature, dtype)
    second_gap = rest.mass.log() + top.third_gap
    beyond, second = torch.sigmoid(second_gap), torch.sigmoid(-second_gap)
    gap = top.gap + softplus(second_gap)
    collision = second.square() + beyond.square() * rest.sq_mass / rest.mass.square()
    # In place on rows just gathered: on a CPU, the pages of a new (batch, dim) tensor cost more than its arithmetic.
    second_rows = head.rows(top.second).to(dtype)
    offset = head.rows(top.first).to(dtype).neg_().add_(second_rows)
    second_offset = rest.mean - second_rows.sub_(head.centre)
    offset = torch.addcmul(offset, beyond.unsqueeze(1).to(dtype), second_offset)
    variance = (rest.mean_sq_norm - sq_norm(rest.mean)).clamp(min=0)
    inner_variance = beyond * (variance + second * sq_norm(second_offset)) + torch.sigmoid(-gap) * sq_norm(offset)
    doubtful = beyond * rest.mean_sq_norm > _CANCELLATION_LIMIT * inner_variance
    return _moments(top.first, gap, collision, inner_variance, offset), doubtful


def _two_class_moments(top: _TopTwo, head: Head) -> SoftmaxMoments:
    offset = head.rows(top.second) - head.rows(top.first)
    return _moments(top.first, top.gap, torch.ones_like(top.gap), torch.sigmoid(-top.gap) * sq_norm(offset), offset)


def _moments(first: Tensor, gap: Tensor, collision: Tensor, inner_variance: Tensor, offset: Tensor) -> SoftmaxMoments:
    """Name the moments, given ``gap = log(q / p)`` of the top class."""
    return SoftmaxMoments(
        first=first,
        log_rest=logsigmoid(gap),
        log_first=logsigmoid(-gap),
        inner_trace=1 + torch.sigmoid(-gap) - torch.sigmoid(gap) * collision,
        rest_collision=collision,
        inner_variance=inner_variance,
        rest_offset=offset,
    )


def _top_two(logits: Float[Tensor, "batch classes"], temperature: float) -> _TopTwo:
    values, classes = logits.topk(min(3, logits.shape[1]), dim=1)
    values = wide(values)
    return _TopTwo(
        first=classes[:, 0],
        second=classes[:, 1],
        reference=values[:, -1],
        gap=(values[:, 1] - values[:, 0]) / temperature,
        third_gap=(values[:, -1] - values[:, 1]) / temperature,
    )


def _remainder(
    logits: Float[Tensor, "batch classes"], top: _TopTwo, head: Head, temperature: float, dtype: torch.dtype
) -> _Remainder:
    """Sum over the classes behind the top two, tile by tile: one pass over logits and head."""
    mass = sq_mass = sq_norms = wide(logits.new_zeros(len(logits)))
    weighted_rows = logits.new_zeros(len(logits), head.dim, dtype=dtype)
    reference = top.reference.to(dtype).unsqueeze(1)
    for tile in chunks(logits.shape[1], TILE_ELEMENTS // max(len(logits), head.dim)):
        index = torch.arange(tile.start, tile.stop, device=logits.device)
        is_top = (index == top.first.unsqueeze(1)) | (index == top.second.unsqueeze(1))
        exponents = (logits[:, tile].to(dtype) - reference).masked_fill(is_top, -torch.inf)
        terms = (exponents / temperature).exp()
        rows = head.rows(tile).to(dtype) - head.centre
        mass = mass + wide(terms.sum(1))
        sq_mass = sq_mass + sq_norm(terms)
        sq_norms = sq_norms + wide(terms @ sq_norm(rows).to(dtype))
        weighted_rows.addmm_(terms, rows)
    return _Remainder(mass, sq_mass, weighted_rows / mass.to(dtype).unsqueeze(1), sq_norms / mass)


def softmax_top_eigenvalue(
    logits: Float[Tensor, "batch classes"], temperature: float = 1.0, iterations: int = 50
) -> Float[Tensor, " batch"]:
    r"""Largest eigenvalue of ``diag p − ppᵀ``, by bisection of its secular equation ``Σ p_k²/(p_k − λ) = 1``.

    With ``λ = q x`` and ``π`` the softmax of all but the top class it reads
    ``(x − p₁)/(p₁ − q x) = Σ π_k²/(x − π_k)``, which has no small numbers left in it however confident the prediction;
    ``x`` lies between ``max(p₁, π_max)`` and twice that (Gershgorin), below ``p₁/q``.

    Args:
        logits: any number of classes.
        temperature: the logits are divided by it.
        iterations: bisection steps; each halves the relative error, 1 at the start.

    Returns:
        Eigenvalues ≥ 0, in float64 (float32 on MPS).
    """
    batch, classes = logits.shape
    if classes == 1:
        return wide(logits.new_zeros(batch))
    parts = chunks(batch, TILE_ELEMENTS // classes)
    return torch.cat([_bisect(wide(logits[rows]) / temperature, iterations) for rows in parts])


def _bisect(logits: Float[Tensor, "batch classes"], iterations: int) -> Float[Tensor, " batch"]:
    first = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, first, -torch.inf)
    gap = others.logsumexp(1, keepdim=True) - logits.gather(1, first)
    rest, prob = torch.sigmoid(gap), torch.sigmoid(-gap)
    shares = others.softmax(1)
    with torch.no_grad():
        low = torch.maximum(prob, shares.amax(1, keepdim=True))
        high = torch.minimum(2 * low, prob / rest)
        for _ in range(iterations):
            middle = (low + high) / 2
            below = (middle - prob) / (prob - rest * middle) < (shares.square() / (middle - shares)).sum(
                1, keepdim=True
            )
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        root = (low + high) / 2
        # Eigenvector, relative to its entry at the top class; the derivative of an eigenvalue is vᵀ(∂H)v.
        entries = (shares * (prob - rest * root) / (shares - root) / prob).nan_to_num()
    if not logits.requires_grad:
        return (rest * root).squeeze(1)
    sq_length = 1 + entries.square().sum(1, keepdim=True)
    spread = rest * (shares * (entries - 1).square()).sum(1, keepdim=True)
    mean = rest * (shares * (entries - 1)).sum(1, keepdim=True)
    quotient = (spread - mean.square()) / sq_length
    return (rest * root + quotient - quotient.detach()).squeeze(1)
