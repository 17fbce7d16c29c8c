"""The change of the loss under a displacement: against mpmath, against two losses, and errors."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lightning_flatness.functional import loss_change, loss_increase_bound
from tests.functional.oracles import mp_softmax


def problem(seed=0, *, batch=5, classes=4, dim=3, scale=3.0, length=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    parts = ((batch, classes), (classes, dim), (batch, dim))
    logits, weight, displacement = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in parts)
    target = torch.randint(classes, (batch,), generator=generator)
    return (scale * logits).to(dtype), target, weight.to(dtype), (length * displacement).to(dtype)


def literal(logits, target, weight, displacement):
    """``log Σ p_j exp((w_j − w_y)·u)`` with 60 digits."""
    with mpmath.workdps(60):
        p, _ = mp_softmax(logits)
        slopes = [
            sum(mpmath.mpf(w) * mpmath.mpf(u) for w, u in zip(row, displacement.tolist(), strict=True))
            for row in weight.tolist()
        ]
        return mpmath.log(sum(q * mpmath.exp(slope - slopes[int(target)]) for q, slope in zip(p, slopes, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-12, 1e-6, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 300.0])
def test_all_digits_are_right(scale, length, dtype):
    logits, target, weight, displacement = problem(scale=scale, length=length, dtype=dtype)
    changes = loss_change(logits, target, weight, displacement).tolist()
    for row, change in enumerate(changes):
        expected = literal(logits[row], target[row], weight, displacement[row])
        # What mpmath cannot be asked for: p_y e^0 beside terms that are as large, where the sum cancels.
        assert change == pytest.approx(float(expected), rel=1e-9, abs=1e-13 * max(1.0, scale) * max(1.0, length))


def test_confident_samples_keep_their_digits():
    logits, target = torch.tensor([[60.0, 0.0, 0.0]]), torch.tensor([0])
    weight, displacement = torch.eye(3), torch.tensor([[-0.5, 0.5, 0.0]])
    expected = float(literal(logits[0], 0, weight, displacement[0]))
    assert 0 < expected < 1e-25
    assert loss_change(logits, target, weight, displacement).item() == pytest.approx(expected, rel=1e-12)


def test_difference_of_two_losses():
    logits, target, weight, displacement = problem()
    moved = logits + displacement @ weight.T
    expected = cross_entropy(moved, target, reduction="none") - cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss_change(logits, target, weight, displacement), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), length=st.sampled_from([1e-9, 0.1, 3.0, 100.0]), classes=st.sampled_from([2, 5, 30]))
def test_never_above_the_bound_of_its_length(seed, length, classes):
    logits, target, weight, displacement = problem(seed, classes=classes, length=length)
    bound = loss_increase_bound(logits, target, weight, displacement.norm(dim=1))
    change = loss_change(logits, target, weight, displacement)
    assert bool((change <= bound * (1 + 1e-9) + 1e-12).all())


def test_common_part_of_the_rows_changes_nothing():
    logits, target, weight, displacement = problem()
    shifted = loss_change(logits, target, weight + 1e6, displacement)
    torch.testing.assert_close(shifted, loss_change(logits, target, weight, displacement), rtol=1e-7, atol=1e-8)


def test_no_sample_and_no_displacement():
    logits, target, weight, displacement = problem()
    assert loss_change(logits[:0], target[:0], weight, displacement[:0]).shape == (0,)
    assert loss_change(logits, target, weight, 0 * displacement).tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"displacement": torch.zeros(5)}, r"`displacement` must have 2 dimensions, got shape \(5,\)"),
        ({"displacement": torch.zeros(5, 2)}, r"`displacement` must have shape \(5, 3\), got \(5, 2\)\."),
        ({"displacement": torch.full((5, 3), torch.inf)}, r"`displacement` must be finite, got inf at \[0, 0\]\."),
        ({"target": torch.full((5,), 4)}, r"`target` must be in \[0, 4\), got 4; leave ignored samples out\."),
        ({"weight": torch.zeros(3, 3)}, r"`logits` must have one column per row of `weight` \(3\), got 4\."),
        ({"logits": torch.full((5, 4), torch.nan)}, r"`logits` must be finite, got nan at \[0, 0\]\."),
    ],
)
def test_errors(changes, message, unchecked_shapes):
    arguments = dict(zip(("logits", "target", "weight", "displacement"), problem(), strict=True))
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        loss_change(**{**arguments, **changes})
