r"""Softmax moments that stay exact for confident predictions.

The textbook forms ``Σ p‖w‖² − ‖Σ p w‖²`` and ``1 − Σ p²`` lose every digit as soon as one class takes all the
probability. Here the two largest classes are split off by the law of total variance, so that only non-negative
terms are ever added; the classes behind them are described by their own softmax, its mean row and its variance.
"""

from collections.abc import Iterator
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
# ratio of that norm to the whole variance it would show in the sixth digit: such rows are evaluated in float64, term
# by term.
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
    if head.dim == 0 or logits.device.type == "mps" or not doubtful.any():
        return moments
    rows = doubtful.nonzero().squeeze(1)
    exact, _ = _evaluate(logits[rows], head, temperature, torch.float64, from_differences=True)
    pairs = zip(moments, exact, strict=True)
    return SoftmaxMoments(*(old.index_copy(0, rows, new.to(old.dtype)) for old, new in pairs))


def _evaluate(
    logits: Float[Tensor, "batch classes"],
    head: Head,
    temperature: float,
    dtype: torch.dtype,
    *,
    from_differences: bool = False,
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
    second_offset = second_rows.sub_(head.centre).neg_().add_(rest.mean)
    offset.addcmul_(beyond.unsqueeze(1).to(dtype), second_offset)
    if from_differences:
        variance = _variance_from_differences(logits, top, head, temperature, rest)
    else:
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
    weighted_rows = wide(logits.new_zeros(len(logits), head.dim))
    for tile in _tiles(logits, head):
        sums = _add_tile(weighted_rows, logits[:, tile], top, head, tile, temperature, dtype)
        mass, sq_mass, sq_norms = mass + sums[0], sq_mass + sums[1], sq_norms + sums[2]
    return _Remainder(mass, sq_mass, (weighted_rows / mass.unsqueeze(1)).to(dtype), sq_norms / mass)


def _tiles(logits: Tensor, head: Head) -> Iterator[slice]:
    """Classes in parts small enough for memory, and for float32 sums of terms of very different size."""
    return chunks(logits.shape[1], min(512, TILE_ELEMENTS // max(1, len(logits), head.dim)))


def _add_tile(
    weighted_rows: Float[Tensor, "batch dim"],
    logits: Float[Tensor, "batch tile"],
    top: _TopTwo,
    head: Head,
    tile: slice,
    temperature: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add ``Σ e (w − centre)`` of a tile of classes in place; return its ``Σ e``, ``Σ e²`` and ``Σ e ‖w − centre‖²``.

    A function of its own, so that no two tiles are in memory at once.
    """
    terms = _terms(logits, tile, top, temperature, dtype)
    rows = head.rows(tile).to(dtype) - head.centre
    weighted_rows.add_(terms @ rows)
    return wide(terms.sum(1)), sq_norm(terms), wide(terms @ sq_norm(rows).to(dtype))


def _terms(
    logits: Float[Tensor, "batch tile"], tile: slice, top: _TopTwo, temperature: float, dtype: torch.dtype
) -> Float[Tensor, "batch tile"]:
    """``e_k`` of a tile of classes, 0 for the top two."""
    classes = torch.arange(tile.start, tile.stop, device=logits.device)
    exponents = logits.to(dtype) - top.reference.to(dtype).unsqueeze(1)
    for left_out in (top.first, top.second):
        exponents.masked_fill_(classes == left_out.unsqueeze(1), -torch.inf)
    return exponents.div_(temperature).exp_()


def _variance_from_differences(
    logits: Float[Tensor, "batch classes"], top: _TopTwo, head: Head, temperature: float, rest: _Remainder
) -> Float[Tensor, " batch"]:
    """``Σ e ‖w − mean‖² / Σ e`` term by term: slow, and exact where the difference of two sums is not."""
    total = torch.zeros_like(rest.mass)
    for tile in _tiles(logits, head):
        terms = _terms(logits[:, tile], tile, top, temperature, torch.float64)
        rows = head.rows(tile).double() - head.centre
        distances = torch.cdist(rest.mean, rows, compute_mode="donot_use_mm_for_euclid_dist")
        total = total + (terms * distances.square()).sum(1)
    return total / rest.mass


def softmax_top_eigenvalue(
    logits: Float[Tensor, "batch classes"], temperature: float = 1.0, iterations: int = 50
) -> LogScaled:
    r"""Largest eigenvalue of ``diag p − ppᵀ``, by bisection of its secular equation ``Σ p_k²/(p_k − λ) = 1``.

    With ``λ = q x`` and ``π`` the softmax of all but the top class it reads
    ``(x − p₁)/(p₁ − q x) = Σ π_k²/(x − π_k)``, which has no small numbers left in it however confident the prediction;
    ``x`` lies between ``max(p₁, π_max)`` and twice that (Gershgorin), below ``p₁/q``.

    Args:
        logits: at least two classes.
        temperature: the logits are divided by it.
        iterations: bisection steps; each halves the relative error, 1 at the start.

    Returns:
        Eigenvalues ≥ 0, in float64 (float32 on MPS).
    """
    parts = chunks(len(logits), TILE_ELEMENTS // logits.shape[1])
    return LogScaled.cat([_bisect(wide(logits[rows]) / temperature, iterations) for rows in parts])


def _bisect(logits: Float[Tensor, "batch classes"], iterations: int) -> LogScaled:
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
    if logits.requires_grad:
        quotient = _rayleigh_quotient(root, rest, prob, shares)
        root = root + quotient - quotient.detach()
    return LogScaled(root.squeeze(1), logsigmoid(gap).squeeze(1))


def _rayleigh_quotient(root: Tensor, rest: Tensor, prob: Tensor, shares: Tensor) -> Tensor:
    """``vᵀ (diag p − ppᵀ) v / q‖v‖²`` at the fixed eigenvector: the derivative of an eigenvalue is ``vᵀ (∂H) v``."""
    with torch.no_grad():
        entries = (shares * (prob - rest * root) / (shares - root) / prob).nan_to_num()  # relative to the top class
        entries = torch.where((shares - root).abs() <= 1e-12 * root, -1.0, entries)  # as probable as the top class
        sq_length = 1 + entries.square().sum(1, keepdim=True)
    mean = (shares * (entries - 1)).sum(1, keepdim=True)
    return ((shares * (entries - 1).square()).sum(1, keepdim=True) - rest * mean.square()) / sq_length
