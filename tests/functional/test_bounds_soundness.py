"""No displacement that ascent or an attack finds beats a bound, and none of the bounds is far above the worst one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from lightning_flatness.attacks import ThreatModel, pgd
from lightning_flatness.functional import decision_radius, loss_increase_bound, loss_radius
from tests.attacks.models import digit_cnn, held_out
from tests.functional.worst_case import FRACTIONS, HeadProblem, random_problem, worst_case

METHODS = ["bennett", "trace", "refined"]
ROUNDING = 1e-9
LARGEST = {"bennett": 3.0, "trace": 6.0, "refined": 1.3}  # times the worst case, below 64 classes


def ratios(problem, iterations=40):
    """Bounds over what ascent finds, where that is not all rounding."""
    worst = worst_case(problem, iterations, random_starts=1)
    visible = worst > 1e-12
    return {method: (loss_increase_bound(*problem, method=method) / worst)[visible] for method in METHODS}


@given(seed=st.integers(0, 2**40))
@settings(max_examples=170)  # of 64 problems each
def test_no_ascent_beats_a_bound(seed):
    for method, ratio in ratios(random_problem(seed)).items():
        assert (ratio > 1 - ROUNDING).all(), method


def test_tightness():
    found = [ratios(random_problem(seed)) for seed in range(40)]
    for method, largest in LARGEST.items():
        ratio = torch.cat([part[method] for part in found])
        assert ratio.median() < 1.02
        assert ratio.max() < largest


@pytest.mark.parametrize(("extreme", "factor"), [("confident", 30.0), ("flat", 1e-3)])
def test_extreme_heads(extreme, factor):
    for seed in range(6):
        problem = random_problem(seed, batch=32)
        problem = problem._replace(logits=factor * problem.logits, weight=factor * problem.weight)
        for method, ratio in ratios(problem).items():
            assert (ratio > 1 - ROUNDING).all(), (extreme, method)


def balanced_problem(seed, scale):
    """The true row is the mean of the others but for ``scale``, so that what the other classes add up to cancels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    logits = 0.3 * torch.randn(1, 5, generator=generator, dtype=torch.float64)
    weight[0] = logits[0, 1:].softmax(0) @ weight[1:]
    narrowest = torch.linalg.svd(weight[1:] - weight[0]).Vh[-1]
    weight[0] += 2 * scale * torch.randn((), generator=generator, dtype=torch.float64) * narrowest
    return HeadProblem(logits, torch.tensor([0]), weight, torch.tensor([scale], dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("method", METHODS)
def test_rounding_takes_nothing_from_a_bound_where_classes_cancel(method, scale):
    for seed in range(60):
        problem = balanced_problem(seed, scale)
        # The oracle itself loses digits: 1e-16 of the largest term, which is 1 / scale of the sum.
        tolerance = 1e-14 / scale
        assert loss_increase_bound(*problem, method=method) >= worst_case(problem, 30) * (1 - tolerance), seed


# Trained networks

CASES = {"standard": (5, 0.0), "adversarial": (2, 0.2)}
every_network = [pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.fixture(scope="session", params=every_network)
def network(request):
    """A trained network, and its head on digits it has not seen."""
    model, (inputs, target) = digit_cnn(*CASES[request.param]), held_out(200)
    with torch.no_grad():
        features = model[:-1](inputs)
        return (
            model,
            inputs,
            features.double(),
            HeadProblem(model[-1](features).double(), target, model[-1].weight.detach().double(), torch.ones(200)),
        )


def test_trained_heads(network):
    _, _, features, problem = network
    for fraction in FRACTIONS:
        for method, ratio in ratios(problem._replace(radius=fraction * features.norm(dim=1))).items():
            assert (ratio > 1 - ROUNDING).all(), (fraction, method)
            assert (ratio < LARGEST[method]).all(), (fraction, method)


@pytest.mark.parametrize("epsilon", [0.03, 0.1, 0.3])
def test_what_an_attack_does_to_the_features_is_within_the_bounds(network, epsilon):
    """The bound at the displacement that PGD really causes is at least the increase that it really reaches."""
    model, inputs, features, problem = network
    generator = torch.Generator().manual_seed(0)
    attacked = pgd(model, inputs, problem.target, ThreatModel(epsilon=epsilon), steps=10, generator=generator).x_adv
    with torch.no_grad():
        moved = model[:-1](attacked).double()
    logits, radius = problem.logits + (moved - features) @ problem.weight.T, (moved - features).norm(dim=1)
    before, after = (cross_entropy(z, problem.target, reduction="none") for z in (problem.logits, logits))
    increase = after - before
    for method in METHODS:
        value = loss_increase_bound(*problem._replace(radius=radius), method=method)
        assert (value >= increase * (1 - ROUNDING) - ROUNDING).all()
        allowed = loss_radius(*problem[:3], increase.clamp(min=1e-6), method=method)
        assert (allowed <= radius * (1 + 1e-6)).logical_or(increase < 1e-6).all()
    flipped = logits.argmax(1) != problem.target
    assert (decision_radius(*problem[:3]) <= radius)[flipped].all()
