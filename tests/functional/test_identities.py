"""Lemmas and identities of ``docs/mathematics.md`` and ``docs/bounds.md``, as they are written there, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_flatness.functional import relative_flatness, scale_head
from lightning_flatness.functional._bounds_branch import Gain, _Axis, _slab_bound
from lightning_flatness.functional.statistics import wilson_interval

seeds = given(seed=st.integers(0, 10**6))
few_examples = settings(max_examples=20)


def head(seed, classes=5, dim=3):
    """Probabilities, rows of the head, and logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(classes, generator=generator, dtype=torch.float64)
    return logits.softmax(0), torch.randn(classes, dim, generator=generator, dtype=torch.float64), logits


def directions(seed, count, dim=3):
    points = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def variance(probs, rows):
    mean = probs @ rows
    return probs @ (rows - mean).square().sum(1)


def psi(x):
    return torch.where(x.abs() < 1e-4, 0.5 + x / 6, (x.expm1() - x) / x.square())


@seeds
@few_examples
def test_total_variance_without_the_top_class(seed):
    probs, rows, logits = head(seed)
    top = int(probs.argmax())
    rest = torch.arange(len(probs)) != top
    q, inner = (logits[rest].logsumexp(0) - logits[top]).sigmoid(), logits[rest].softmax(0)
    mean = inner @ rows[rest]
    split = q * (variance(inner, rows[rest]) + probs[top] * (mean - rows[top]).square().sum())
    assert_close(split, variance(probs, rows))
    assert_close(q * (1 + probs[top] - q * inner.square().sum()), (probs * (1 - probs)).sum())


@seeds
@few_examples
def test_secular_equation_of_the_largest_eigenvalue(seed):
    probs, _, logits = head(seed)
    covariance = probs.diag() - probs.outer(probs)
    top = torch.linalg.eigvalsh(covariance)[-1]
    assert_close((probs.square() / (probs - top)).sum(), torch.ones_like(top), rtol=1e-6, atol=1e-6)
    first = int(probs.argmax())
    rest = torch.arange(len(probs)) != first
    q, inner = 1 - probs[first], logits[rest].softmax(0)
    x, largest = top / q, torch.maximum(probs[first], inner.max())
    left, right = (x - probs[first]) / (probs[first] - q * x), (inner.square() / (x - inner)).sum()
    assert_close(left, right, rtol=1e-6, atol=1e-9)
    assert largest - 1e-9 <= x <= 2 * largest + 1e-9
    assert top <= 0.5 + 1e-12


@given(x=st.floats(-30, 30), y=st.floats(-30, 30))
def test_psi_is_the_integral_and_increases(x, y):
    nodes = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    low, high = torch.tensor(sorted((x, y)), dtype=torch.float64)
    assert psi(low) <= psi(high) * (1 + 1e-9)
    assert_close(((1 - nodes) * (nodes * low).exp()).mean(), psi(low), rtol=1e-4, atol=1e-12)


@seeds
@few_examples
def test_curvature_in_the_bound_is_the_flatness(seed):
    probs, rows, logits = head(seed)
    offsets = rows - rows[0]
    features = directions(seed, 1)
    kappa = relative_flatness(features, rows, logits.unsqueeze(0))[0]
    gradient = probs @ offsets
    half_trace = (probs @ offsets.square().sum(1)) / 2
    assert_close(half_trace, (kappa / features.square().sum() + gradient.square().sum()) / 2)


@given(seed=st.integers(0, 10**6), t=st.floats(0.05, 20), radius=st.floats(0.1, 3))
@few_examples
def test_kernel_inequality(seed, t, radius):
    probs, rows, _ = head(seed)
    offsets = (rows - rows[0])[1:]
    gram = (probs[1:].outer(probs[1:])).sqrt() * (offsets @ offsets.T / (4 * t)).exp()
    bound = torch.exp(torch.tensor(t * radius**2)) * torch.linalg.eigvalsh(gram)[-1]
    moved = radius * directions(seed, 200)
    assert bool(((moved @ offsets.T).exp() @ probs[1:] <= bound * (1 + 1e-9)).all())


@given(seed=st.integers(0, 10**6), start=st.floats(0, 3.0), width=st.floats(0.01, 0.14))
@few_examples
def test_bound_in_a_slab(seed, start, width):
    probs, rows, _ = head(seed)
    offsets = (rows - rows[0])[1:]
    gain = Gain(
        log_prob=probs[1:].log().unsqueeze(0),
        gram=(offsets @ offsets.T).unsqueeze(0),
        reach=offsets.norm(dim=1).unsqueeze(0),
        log_rest=torch.full((1,), -torch.inf, dtype=torch.float64),
        log_unit=torch.zeros(1, dtype=torch.float64),
    )
    weights = torch.ones(1, len(offsets), dtype=torch.float64)
    axis = (weights[0] @ offsets) / (weights[0] @ offsets).norm()
    ends = torch.tensor([start, start + width], dtype=torch.float64)
    bound = _slab_bound(_Axis.of(gain, weights), *ends.unsqueeze(1))
    across = directions(seed, 200)
    across = across - (across @ axis).unsqueeze(1) * axis
    across = across / across.norm(dim=1, keepdim=True)
    angles = torch.linspace(*ends.tolist(), 200, dtype=torch.float64).unsqueeze(1)
    points = angles.cos() * axis + angles.sin() * across
    gains = ((points @ offsets.T).expm1() @ probs[1:]).log1p()
    assert float(gains.max()) <= bound.item() + 1e-9


@seeds
@few_examples
def test_a_loss_below_log_2_keeps_the_label_and_one_above_log_k_does_not(seed):
    probs, _, _ = head(seed)
    for label, loss in enumerate(-probs.log()):
        assert loss >= torch.tensor(2.0).log() or label == probs.argmax()
        assert loss <= torch.tensor(float(len(probs))).log() or label != probs.argmax()


def test_wilson_interval_solves_its_quadratic():
    successes, trials, z = torch.tensor([0, 3, 10]), torch.tensor([10, 10, 10]), 1.959963984540054
    k, n = successes.double(), trials.double()
    root = z * (k * (n - k) / n + z**2 / 4).sqrt()
    low, high = wilson_interval(successes, trials)
    assert_close(low, (k + z**2 / 2 - root) / (n + z**2), atol=1e-12, rtol=0)
    assert_close(high, (k + z**2 / 2 + root) / (n + z**2), atol=1e-12, rtol=0)


def test_flatness_falls_with_the_scale_of_the_head_like_an_exponential():
    """``tr H_z ≤ 2 (1 − p_c)``, which falls like ``e^(−sΔ)``."""
    logits = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
    scales = [1.0, 4.0, 16.0]
    result = scale_head(torch.ones(1, 1).double(), logits.T.contiguous(), logits, torch.tensor([0]), scales)
    for scale, value in zip(scales, result.relative_flatness[:, 0], strict=True):
        probs = (scale * logits[0]).softmax(0)
        assert (probs * (1 - probs)).sum() <= 2 * probs[1:].sum() * (1 + 1e-12)
        assert value <= scale**2 * 2 * probs[1:].sum() * logits.square().sum()
        assert probs[1:].sum() <= 2 * torch.tensor(-2.0 * scale).exp()


def test_taylor_misses_the_first_order_and_two_classes_say_by_how_much():
    """``‖g‖ = (1 − p_y)‖a‖`` for two classes."""
    probs, rows, _ = head(0, classes=2)
    gradient = probs @ (rows - rows[0])
    assert_close(gradient.norm(), (1 - probs[0]) * (rows[1] - rows[0]).norm())
