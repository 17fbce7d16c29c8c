"""What is told of many samples: the interval of a proportion, and the quantiles of a distribution.

Quantiles come from a bounded summary of numbers that span hundreds of orders of magnitude: counts in bins of equal
width in ``log|x|`` (the idea of DDSketch, Masson et al., VLDB 2019). Adding the counts of two parts gives the counts of
the whole, exactly, in any order and on any number of processes.
"""

from collections.abc import Sequence
from statistics import NormalDist

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_flatness.functional._checks import check_confidence
from lightning_flatness.functional._numerics import wide

_LOG_WIDTH = 0.02
_LOG_LOW, _LOG_HIGH = -256.0, 128.0
_BINS_PER_SIGN = round((_LOG_HIGH - _LOG_LOW) / _LOG_WIDTH)

QUANTILE_RELATIVE_ERROR = _LOG_WIDTH / 2
"""Largest relative error of a quantile, half the width of a bin."""
SKETCH_BINS = 2 * _BINS_PER_SIGN + 1
"""Number of bins, for negative numbers from large to small, zero, and positive numbers from small to large."""
COARSE_SKETCH_BINS = 2 * (_BINS_PER_SIGN // 5) + 1
"""Number of bins of a sketch whose quantiles are within 5 % instead of 1 %."""


def wilson_interval(
    successes: Shaped[Tensor, "*batch"], trials: Shaped[Tensor, "*batch"], confidence: float = 0.95
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Interval that a probability lies in, given how often its event came in independent trials.

    The probabilities ``π`` with ``(k/n - π)² ≤ z² π(1 - π)/n``. It never leaves [0, 1], ends exactly at 0 where
    there is no success and at 1 where there are only successes, and is [0, 1] for no trials.

    Args:
        successes: how often the event came, ``k``.
        trials: number of trials, ``n``.
        confidence: share of such intervals that hold the true probability, on average.

    Returns:
        Lower and upper ends, float64 (float32 on MPS).

    Raises:
        ValueError: if ``successes`` are not in [0, trials], or ``confidence`` is not between 0 and 1.

    References:
        E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22, 1927.

    Example:
        >>> low, high = wilson_interval(torch.tensor([0, 5, 10]), torch.tensor([10, 10, 10]))
        >>> low, high
        (tensor([0.0000, 0.2366, 0.7225], dtype=torch.float64), tensor([0.2775, 0.7634, 1.0000], dtype=torch.float64))
    """
    check_confidence(confidence)
    k, n = wide(successes), wide(trials)
    inside = (k >= 0) & (k <= n)
    if not bool(inside.all()):
        raise ValueError(f"`successes` must be in [0, {n[~inside][0]:g}], got {k[~inside][0]:g}.")
    z = -NormalDist().inv_cdf((1 - confidence) / 2)
    return _wilson_low(k, n, z), 1 - _wilson_low(n - k, n, z)


def _wilson_low(k: Tensor, n: Tensor, z: float) -> Tensor:
    """Smaller root of the quadratic, from its product with the larger one: nothing cancels."""
    share = k / n.clamp(min=1)
    return k * share / (k + z**2 / 2 + z * (share * (n - k) + z**2 / 4).sqrt())


def histogram_quantiles(counts: Int[Tensor, " bins"], probabilities: Sequence[float]) -> Int[Tensor, " quantiles"]:
    """Bins that hold the quantiles of the values behind ``counts``.

    Args:
        counts: number of values in each bin, from small values to large.
        probabilities: in [0, 1]; 0.5 is the (lower) median.

    Returns:
        One index per probability, on the CPU.

    Raises:
        ValueError: if all counts are zero.

    Example:
        >>> histogram_quantiles(torch.tensor([0, 3, 1, 2]), [0.0, 0.5, 1.0])
        tensor([1, 1, 3])
    """
    cumulated = counts.cpu().cumsum(0)
    total = int(cumulated[-1])
    if total == 0:
        raise ValueError("`counts` must hold at least one value, got none.")
    ranks = (torch.tensor(probabilities, dtype=torch.float64) * total).ceil().clamp(1, total).long()
    return torch.searchsorted(cumulated, ranks)


def sketch_bins(
    values: Float[Tensor, "*batch"], log_abs: Float[Tensor, "*batch"], bins: int = SKETCH_BINS
) -> Int[Tensor, "*batch"]:
    """Bin of each value, given its sign by ``values`` and its size by ``log_abs``, which cannot underflow.

    Sizes below e^-256 count as zero, sizes above e^128 as e^128; NaN falls into the bin of zero.

    Args:
        values: numbers, of which only the sign is used.
        log_abs: natural logarithms of their absolute values; -inf for 0.
        bins: number of bins, :data:`SKETCH_BINS` or :data:`COARSE_SKETCH_BINS`.

    Returns:
        Indices in [0, ``bins``).

    Example:
        >>> values = torch.tensor([-1.0, 0.0, 1.0])
        >>> sketch_bins(values, values.abs().log()) - SKETCH_BINS // 2
        tensor([-12801,      0,  12801])
    """
    per_sign = bins // 2
    width = (_LOG_HIGH - _LOG_LOW) / per_sign
    rank = torch.floor((log_abs.nan_to_num(-torch.inf, torch.inf) - _LOG_LOW) / width) + 1
    rank = rank.clamp(0, per_sign).long()
    return per_sign + torch.where(values < 0, -rank, rank)


def sketch_quantiles(counts: Int[Tensor, " bins"], probabilities: Sequence[float]) -> list[float]:
    """Quantiles of the values behind ``counts``, each within 1 % (coarse: 5 %) of a value whose rank is right.

    Args:
        counts: number of values in each bin.
        probabilities: in [0, 1]; 0.5 is the (lower) median.

    Returns:
        One value per probability.

    Raises:
        ValueError: if all counts are zero.

    Example:
        >>> values = torch.arange(1.0, 101.0)
        >>> counts = torch.bincount(sketch_bins(values, values.log()), minlength=SKETCH_BINS)
        >>> [round(value, 2) for value in sketch_quantiles(counts, [0.5, 1.0])]
        [49.9, 100.48]
    """
    return _bin_centres(len(counts))[histogram_quantiles(counts, probabilities)].tolist()


def sketch_histogram(
    counts: Int[Tensor, " bins"], low: float, high: float, bins: int = 64
) -> tuple[Int[Tensor, " coarse"], Float[Tensor, " edges"]]:
    """Histogram of ``log10`` of the positive values behind ``counts``, in equal bins from ``low`` to ``high``.

    Args:
        counts: number of values in each bin of the sketch.
        low: ``log10`` of the smallest value shown; smaller positive ones are counted in the first bin.
        high: ``log10`` of the largest value shown; larger ones are counted in the last bin.
        bins: number of bins of the histogram.

    Returns:
        Counts, and the edges, one more than counts.

    Example:
        >>> values = torch.tensor([2.0, 20.0, 30.0])
        >>> counts = torch.bincount(sketch_bins(values, values.log()), minlength=SKETCH_BINS)
        >>> sketch_histogram(counts, 0.0, 2.0, bins=2)
        (tensor([1, 2]), tensor([0., 1., 2.], dtype=torch.float64))
    """
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    positive = counts.cpu()[_BINS_PER_SIGN + 1 :]
    place = torch.bucketize(_bin_centres()[_BINS_PER_SIGN + 1 :].log10(), edges) - 1
    coarse = torch.zeros(bins, dtype=torch.int64).index_add_(0, place.clamp(0, bins - 1), positive)
    return coarse, edges


def sketch_log10_range(counts: Int[Tensor, " bins"]) -> tuple[float, float]:
    """``log10`` of the smallest and the largest positive value behind ``counts``, rounded out to whole numbers.

    Args:
        counts: number of values in each bin of the sketch.

    Returns:
        The two bounds, at least 1 apart; (0, 1) where no value is positive.

    Example:
        >>> values = torch.tensor([2.0, 20.0, 300.0])
        >>> sketch_log10_range(torch.bincount(sketch_bins(values, values.log()), minlength=SKETCH_BINS))
        (0.0, 3.0)
    """
    occupied = counts.cpu()[_BINS_PER_SIGN + 1 :].nonzero().squeeze(1)
    if not occupied.numel():
        return 0.0, 1.0
    ends = _bin_centres()[_BINS_PER_SIGN + 1 + occupied[[0, -1]]].log10()
    low, high = float(ends[0].floor()), float(ends[1].ceil())
    return low, max(high, low + 1)


def histogram_rank_correlation(counts: Int[Tensor, "rows columns"]) -> float:
    """Spearman's rank correlation of two quantities, given how many samples fall into each pair of bins.

    Samples of one bin count as tied: the result is exact for the binned quantities, and close to that of the quantities
    themselves where no bin holds a large share of the samples.

    Args:
        counts: number of samples by bin of the first (rows) and of the second quantity (columns), each in order.

    Returns:
        Correlation in [-1, 1]; NaN where a quantity is in one bin only.

    Example:
        >>> histogram_rank_correlation(torch.tensor([[2, 0], [0, 3]]))
        1.0
    """
    weight = counts.cpu().double()
    ranks = [marginal.cumsum(0) - marginal / 2 for marginal in (weight.sum(1), weight.sum(0))]
    first, second = (rank - weight.sum() / 2 for rank in ranks)
    variances = (weight.sum(1) @ first.square(), weight.sum(0) @ second.square())
    return float(first @ weight @ second / (variances[0] * variances[1]).sqrt())


def _bin_centres(bins: int = SKETCH_BINS) -> Float[Tensor, " bins"]:
    """Value that stands for each bin: geometric mean of its edges."""
    per_sign = bins // 2
    width = (_LOG_HIGH - _LOG_LOW) / per_sign
    logs = _LOG_LOW + width * (torch.arange(per_sign, dtype=torch.float64) + 0.5)
    positive = logs.exp()
    return torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
