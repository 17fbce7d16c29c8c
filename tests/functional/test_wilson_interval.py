"""Wilson's interval against its textbook formula with 50 digits."""

import math
from itertools import compress

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_flatness.functional.statistics import wilson_interval

counts = st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def textbook(k, n, confidence):
    with mpmath.workdps(50):
        p, n = mpmath.mpf(k) / n, mpmath.mpf(n)
        z = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(confidence))
        centre, half = p + z**2 / (2 * n), z * mpmath.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return [float((centre + sign * half) / (1 + z**2 / n)) for sign in (-1, 1)]


@given(counts, st.floats(0.01, 0.9999))
@example((1, 10**9), 0.95)
@example((10**9 - 1, 10**9), 0.95)
def test_is_the_textbook_formula_without_its_cancellation(counts, confidence):
    low, high = (end.item() for end in wilson_interval(*map(torch.tensor, counts), confidence))
    expected_low, expected_high = textbook(*counts, confidence)
    assert low == pytest.approx(expected_low, rel=1e-9, abs=0 if counts[0] else 1e-40)
    assert 1 - high == pytest.approx(1 - expected_high, rel=1e-9, abs=1e-15)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@pytest.mark.parametrize("n", [1, 7, 5000])
def test_ends_are_exact_where_all_trials_agree(n):
    low, high = wilson_interval(torch.tensor([0, n]), torch.tensor([n, n]))
    assert low[0] == 0
    assert high[1] == 1
    assert low[1] == pytest.approx(1 - high[0])
    assert low[1] > 0


def test_no_trials_say_nothing():
    low, high = wilson_interval(torch.tensor([0, 3]), torch.tensor([0, 4]))
    assert (low[0].item(), high[0].item()) == (0.0, 1.0)
    assert 0 < low[1] < high[1] < 1


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_holds_the_true_probability_as_often_as_it_says(probability, confidence):
    n = 1000
    k = torch.arange(n + 1)
    low, high = wilson_interval(k, torch.full_like(k, n), confidence)
    chances = [math.comb(n, j) * probability**j * (1 - probability) ** (n - j) for j in range(n + 1)]
    inside = ((low <= probability) & (probability <= high)).tolist()
    assert math.fsum(compress(chances, inside)) == pytest.approx(confidence, abs=0.025)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_shape_is_kept_and_numbers_are_float64(shape, dtype):
    for end in wilson_interval(torch.ones(shape, dtype=dtype), torch.full(shape, 3, dtype=dtype)):
        assert end.shape == shape
        assert end.dtype == torch.float64


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_confidence_that_is_none(confidence):
    with pytest.raises(ValueError, match=rf"`confidence` must be between 0 and 1, got {confidence}\."):
        wilson_interval(torch.tensor(1), torch.tensor(2), confidence)


@pytest.mark.parametrize("bad", [-1, 6])
def test_counts_that_are_none(bad):
    with pytest.raises(ValueError, match=rf"`successes` must be in \[0, 5\], got {bad}\."):
        wilson_interval(torch.tensor([1, bad]), torch.tensor([3, 5]))


def test_count_that_is_not_a_number():
    with pytest.raises(ValueError, match=r"`successes` must be in \[0, 5\], got nan\."):
        wilson_interval(torch.tensor(math.nan), torch.tensor(5.0))
