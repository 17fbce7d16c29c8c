"""The ball, the valid range, and the units."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_flatness.attacks import ThreatModel
from lightning_flatness.attacks._ball import round_towards
from lightning_flatness.attacks._noise import normal, sample_seeds, uniform

SHAPES = st.sampled_from([(3, 2, 4, 5), (4, 2, 7), (5, 2), (1, 2, 3, 3), (0, 2, 3)])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@st.composite
def threat_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments only: a strategy may not run what draws random numbers, as the shape checks do."""
    norm = draw(st.sampled_from(["linf", "l2"]))
    epsilon = draw(st.floats(0, 2))
    limits = draw(st.sampled_from([(0.0, 1.0), (None, 1.0), (0.0, None), (None, None), ((0.0, -1.0), (1.0, 3.0))]))
    mean, std = draw(st.sampled_from([(None, None), (0.3, 0.2), ((0.1, 0.6), (0.5, 2.0))]))
    if norm == "linf" and draw(st.booleans()):
        epsilon = (epsilon, 2 * epsilon)
    return dict(
        zip(("norm", "epsilon", "lower", "upper", "mean", "std"), (norm, epsilon, *limits, mean, std), strict=True)
    )


def channels(value: object, like: Tensor, default: float) -> Tensor:
    numbers = torch.tensor(default if value is None else value, dtype=torch.float64)
    return numbers.view(1, -1, *[1] * (like.ndim - 2))


def clean_inputs(threat: ThreatModel, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    unit = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    unit = unit.where(unit > 0.2, 0).where(unit < 0.8, 1)
    lower, upper = channels(threat.lower, unit, -3.0), channels(threat.upper, unit, 5.0)
    data = lower + (upper - lower) * unit
    return ((data - channels(threat.mean, unit, 0)) / channels(threat.std, unit, 1)).to(dtype)


def assert_allowed(threat: ThreatModel, x_adv: Tensor, inputs: Tensor) -> None:
    """Everything in float64, by the definition."""
    assert x_adv.dtype == inputs.dtype
    assert x_adv.shape == inputs.shape
    scale, mean = channels(threat.std, inputs, 1), channels(threat.mean, inputs, 0)
    shift = (x_adv.double() - inputs.double()) * scale
    if threat.norm == "linf":
        epsilon = channels(threat.epsilon, inputs, 0)
        assert (shift.abs() <= epsilon * (1 + 1e-12)).all()
    else:
        # One rounding of the inputs per element is all that float32 can promise.
        rounding = torch.finfo(torch.float32).eps * (inputs.double().abs() * scale).flatten(1).norm(dim=1)
        assert (shift.flatten(1).norm(dim=1) <= threat.epsilon + rounding).all()
    data, clean = x_adv.double() * scale + mean, inputs.double() * scale + mean
    lower, upper = channels(threat.lower, inputs, -torch.inf), channels(threat.upper, inputs, torch.inf)
    slack = 1e-12 + 1e-6 * (x_adv.dtype == torch.float32)
    assert (data >= torch.minimum(lower, clean) - slack).all()
    assert (data <= torch.maximum(upper, clean) + slack).all()


@given(threat_arguments(), SHAPES, DTYPES, st.integers(0, 99), st.floats(0.01, 100))
def test_projection_stays_in_ball_and_range(arguments, shape, dtype, seed, size):
    threat = ThreatModel(**arguments)
    inputs = clean_inputs(threat, shape, dtype, seed)
    threat.check_inputs(inputs)
    shift = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    projected = threat.project(inputs.float() + shift, inputs)
    assert_allowed(threat, projected, inputs)
    torch.testing.assert_close(threat.project(projected, inputs), projected, rtol=2e-6, atol=1e-6)


@given(threat_arguments(), SHAPES, DTYPES, st.integers(0, 99))
def test_random_start_stays_in_ball_and_range(arguments, shape, dtype, seed):
    threat = ThreatModel(**arguments)
    inputs = clean_inputs(threat, shape, dtype, seed)
    start = threat.random_start(inputs, torch.Generator().manual_seed(seed))
    assert_allowed(threat, start, inputs)


@given(threat_arguments(), SHAPES, st.integers(0, 99), st.floats(1e-3, 1.0))
def test_step_has_its_length_in_data_units(arguments, shape, seed, size):
    threat = ThreatModel(**arguments)
    inputs = clean_inputs(threat, shape, torch.float64, seed)
    gradient = 1e-25 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = threat.step(inputs, gradient, size)
    torch.testing.assert_close(threat.distance(moved, inputs), torch.full((shape[0],), size, dtype=torch.float64))
    torch.testing.assert_close(threat.step(inputs, torch.zeros_like(inputs), size), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_never_leads_away(dtype):
    anchor = torch.randn(20_000).to(dtype).double()
    shift = torch.randn(20_000).double() * 10.0 ** torch.randint(-9, 2, (20_000,))
    rounded = round_towards(anchor + shift, anchor, dtype).double()
    assert ((rounded - anchor).abs() <= shift.abs() * (1 + 1e-12)).all()
    assert ((rounded - anchor) * shift >= 0).all()
    # At most one rounding short.
    assert ((rounded - anchor - shift).abs() <= 1.01 * torch.finfo(dtype).eps * (anchor + shift).abs() + 1e-7).all()


def test_l2_step_survives_float32_underflow():
    inputs = torch.zeros(1, 2)
    moved = ThreatModel("l2").step(inputs, torch.tensor([[3e-30, 4e-30]]), 1.0)
    torch.testing.assert_close(moved, torch.tensor([[0.6, 0.8]]))


def test_distance_is_that_of_the_norm_in_data_units():
    x_adv, inputs = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert ThreatModel("linf", std=(1.0, 2.0)).distance(x_adv, inputs).item() == 8
    assert ThreatModel("l2").distance(x_adv, inputs).item() == 5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_channels_last_is_kept(norm):
    inputs = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    threat = ThreatModel(norm, 0.1)
    for result in (threat.random_start(inputs), threat.project(inputs + 1, inputs)):
        assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(threat.random_start(inputs), threat.random_start(inputs.contiguous()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_depends_on_the_sample_only(norm):
    inputs, threat = torch.rand(7, 3, 4, 4), ThreatModel(norm, 0.3)
    whole = threat.random_start(inputs, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    parts = [threat.random_start(part, generator) for part in inputs.split([3, 1, 3])]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, threat.random_start(inputs, torch.Generator().manual_seed(2)))


def test_noise_is_uniform_normal_and_independent():
    seeds, like = sample_seeds(200, None, torch.device("cpu")), torch.empty(200, 500)
    numbers = uniform(seeds, 0, like)
    assert numbers.min() > 0
    assert numbers.max() <= 1
    counts = torch.histc(numbers, 50, 0, 1)
    assert (((counts - 2000) / 2000**0.5).abs() < 5).all()
    for other in (uniform(seeds, 1, like), numbers.roll(1, 0), numbers.roll(1, 1)):
        correlation = torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]
        assert correlation.abs() < 5 / 1e5**0.5
    gauss = normal(seeds, 0, like)
    assert gauss.isfinite().all()
    assert gauss.mean().abs() < 0.02
    assert (gauss.std() - 1).abs() < 0.02


def test_l2_start_is_uniform_in_the_ball():
    threat = ThreatModel("l2", 1.0, None, None)
    inputs = torch.zeros(5000, 2)
    inside = (threat.distance(threat.random_start(inputs), inputs) < 0.5).double().mean()
    assert (inside - 0.25).abs() < 0.03


def test_lists_from_yaml_make_an_equal_and_hashable_threat():
    threat = ThreatModel(epsilon=[0.1, 0.2], mean=[0.5, 0.5], std=[1.0, 1.0])
    assert threat == ThreatModel(epsilon=(0.1, 0.2), mean=(0.5, 0.5), std=(1.0, 1.0))
    assert len({threat, threat}) == 1


def test_inputs_may_be_off_by_their_rounding():
    data = torch.rand(4, 3, 8, 8).round()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    like = torch.zeros(1, 3, 1, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        normalised = ((data - channels(mean, like, 0).float()) / channels(std, like, 1).float()).to(dtype)
        ThreatModel(mean=mean, std=std).check_inputs(normalised)


def test_inputs_outside_the_range_are_refused():
    inputs = torch.tensor([[-2.0, 0.5], [0.1, 2.5]])
    message = r"`inputs` must lie in \[0.0, 1.0\], got \[-2, 2.5\]; set `lower=`/`upper=`, or `mean=`/`std=`"
    with pytest.raises(ValueError, match=message):
        ThreatModel().check_inputs(inputs)
    ThreatModel(lower=-2.0, upper=3.0).check_inputs(inputs)
    ThreatModel(mean=0.4, std=0.2).check_inputs(inputs)
    ThreatModel(lower=None, upper=None).check_inputs(inputs)


def test_inputs_that_are_no_numbers_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"`inputs` must be finite, got values in \[nan, nan\]"):
        ThreatModel().check_inputs(torch.tensor([[0.5, torch.nan]]))
    with unchecked_shapes:
        with pytest.raises(ValueError, match=r"`inputs` must be a floating-point batch .* got torch.uint8 \(2, 3\)"):
            ThreatModel().check_inputs(torch.zeros(2, 3, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"at least 2 dimensions, got torch.float32 \(3,\)"):
            ThreatModel().check_inputs(torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1"}, "`norm` must be one of linf, l2, got 'l1'"),
        ({"epsilon": -0.1}, r"`epsilon` must be >= 0, got -0.1"),
        ({"epsilon": (0.1, -0.1)}, r"`epsilon` must be >= 0, got \(0.1, -0.1\)"),
        ({"norm": "l2", "epsilon": [0.1, 0.2]}, r"`epsilon` must be one number for norm='l2', got \(0.1, 0.2\)"),
        ({"epsilon": float("nan")}, "`epsilon` must be finite, got nan"),
        ({"upper": float("inf")}, "`upper` must be finite, got inf; None where there is no limit"),
        ({"std": 0.0}, "`std` must be > 0, got 0.0"),
        ({"lower": 1.0}, "`lower` must be < `upper`, got 1.0 and 1.0"),
        ({"lower": (0.0, 2.0)}, r"`lower` must be < `upper`, got \(0.0, 2.0\) and 1.0"),
    ],
)
def test_impossible_threats_are_refused(arguments, message, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        ThreatModel(**arguments)


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"`std` must hold one number per channel \(1\), got 3; channels are dim"):
        ThreatModel(std=(1.0, 2.0, 3.0)).check_inputs(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"`epsilon` must hold one number per channel \(3\), got 2"):
        ThreatModel(epsilon=(0.1, 0.2)).around(torch.zeros(2, 3, 4, 4))
