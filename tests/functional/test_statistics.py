"""The quantile sketch against exact quantiles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_flatness.functional.statistics import (
    COARSE_SKETCH_BINS,
    QUANTILE_RELATIVE_ERROR,
    SKETCH_BINS,
    sketch_bins,
    sketch_histogram,
    sketch_log10_range,
    sketch_quantiles,
)

PROBABILITIES = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]

sizes = st.floats(-80, 30).map(lambda exponent: 10**exponent)
numbers = sizes | sizes.map(lambda size: -size) | st.just(0.0)


def count(values):
    values = torch.as_tensor(values, dtype=torch.float64)
    return torch.bincount(sketch_bins(values, values.abs().log()), minlength=SKETCH_BINS)


def exact_quantiles(values):
    ordered = sorted(values)
    return [ordered[max(1, math.ceil(probability * len(ordered))) - 1] for probability in PROBABILITIES]


def assert_close_to(estimates, exact):
    for estimate, value in zip(estimates, exact, strict=True):
        assert estimate == pytest.approx(value, rel=math.expm1(QUANTILE_RELATIVE_ERROR) + 1e-9, abs=0)


@given(st.lists(numbers, min_size=1, max_size=60))
def test_quantiles_of_any_sign_over_a_hundred_orders_of_magnitude(values):
    assert_close_to(sketch_quantiles(count(values), PROBABILITIES), exact_quantiles(values))


def test_quantiles_of_many_values():
    values = (10 ** (110 * torch.rand(100_000, dtype=torch.float64) - 80)).tolist()
    assert_close_to(sketch_quantiles(count(values), PROBABILITIES), exact_quantiles(values))


def test_stated_error_is_one_percent():
    assert QUANTILE_RELATIVE_ERROR == 0.01


@given(st.lists(numbers), st.lists(numbers))
def test_counts_of_parts_add_up_to_those_of_the_whole(some, others):
    assert torch.equal(count(some) + count(others), count(some + others))


@given(st.floats(-1000, 0))
def test_sizes_that_underflow_are_known_by_their_logarithm(log_abs):
    log_abs = torch.tensor([log_abs], dtype=torch.float64)
    counts = torch.bincount(sketch_bins(log_abs.exp(), log_abs), minlength=SKETCH_BINS)
    (median,) = sketch_quantiles(counts, [0.5])
    expected = log_abs.exp().item() if log_abs >= -256 else 0.0
    assert median == pytest.approx(expected, rel=0.0101, abs=0)


@pytest.mark.parametrize(
    ("value", "log_abs", "place"),
    [(math.nan, math.nan, 0), (math.inf, math.inf, 19200), (-math.inf, math.inf, -19200), (0.0, -math.inf, 0)],
)
def test_values_that_are_not_finite_have_a_bin(value, log_abs, place):
    (index,) = sketch_bins(torch.tensor([value]), torch.tensor([log_abs])).tolist()
    assert index - SKETCH_BINS // 2 == place


@given(st.lists(numbers), st.floats(-90, 20), st.floats(0.5, 60), st.integers(1, 80))
def test_histogram_counts_every_positive_value_once(values, low, width, bins):
    coarse, edges = sketch_histogram(count(values), low, low + width, bins)
    assert coarse.sum() == sum(value > 0 for value in values)
    assert coarse.shape == (bins,)
    assert edges.tolist() == pytest.approx([low + width * i / bins for i in range(bins + 1)])


def test_histogram_puts_values_between_their_edges():
    coarse, _ = sketch_histogram(count([1e-50, 0.5, 0.6, 5.0, 50.0, 1e20, -5.0, 0.0]), -1.0, 2.0, bins=3)
    assert coarse.tolist() == [3, 1, 2]


@given(st.lists(sizes, min_size=1))
def test_range_holds_every_positive_value(values):
    low, high = sketch_log10_range(count([*values, -1e25, 0.0]))
    assert low == math.floor(low)
    assert high == math.ceil(high)
    # values stand for their bins, which are 0.9 % of a decade wide
    assert low - 0.01 <= math.log10(min(values)) < low + 1.01
    assert high - 1.01 <= max(math.log10(max(values)), low + 1) <= high + 0.01


@pytest.mark.parametrize("values", [[], [0.0, -3.0]])
def test_range_without_positive_values(values):
    assert sketch_log10_range(count(values)) == (0.0, 1.0)


def test_no_value_has_no_quantile():
    with pytest.raises(ValueError, match="`counts` must hold at least one value, got none"):
        sketch_quantiles(count([]), [0.5])


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e30])
def test_coarse_sketch_is_within_five_percent(scale):
    values = scale * torch.linspace(-3, 20, 500, dtype=torch.float64).exp()
    values = torch.cat([-values[:50], torch.zeros(7, dtype=torch.float64), values])
    bins = sketch_bins(values, values.abs().log(), COARSE_SKETCH_BINS)
    counts = torch.bincount(bins, minlength=COARSE_SKETCH_BINS)
    assert len(counts) == COARSE_SKETCH_BINS < SKETCH_BINS / 4
    ordered = values.sort().values
    for probability in (0.01, 0.09, 0.1, 0.5, 0.99):
        rank = max(1, math.ceil(probability * len(values))) - 1
        (found,) = sketch_quantiles(counts, [probability])
        assert found == pytest.approx(float(ordered[rank]), rel=0.0513)
