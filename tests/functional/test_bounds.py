"""Bounds on the loss in a ball of features: formulas against mpmath, what holds for every problem, and errors."""

import re

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_flatness.functional import (
    decision_radius,
    flatness_factors,
    loss_increase_bound,
    loss_radius,
    relative_flatness,
)
from tests.benchmarks.measuring import extra_memory
from tests.functional.oracles import mp_softmax
from tests.functional.worst_case import FRACTIONS, HeadProblem, random_problem, worst_case

SOUND = ["bennett", "trace", "refined"]
every_sound_method = pytest.mark.parametrize("method", SOUND)
seeds = st.integers(0, 10**6)
some_examples = settings(max_examples=20)


def bound(problem, method="bennett", **changes):
    return loss_increase_bound(*problem._replace(**changes), method=method)


def small_problem(seed=0, classes=4, dim=3, scale=3.0, batch=3):
    """In float32, to be sure that nothing is lost before float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, dim, generator=generator)
    logits = scale * torch.randn(batch, classes, generator=generator)
    return HeadProblem(logits, torch.arange(batch) % classes, weight, torch.ones(batch))


# The formulas


def mp_psi(x):
    return (mpmath.exp(x) - 1 - x) / x**2 if x else mpmath.mpf(1) / 2


def mp_bound(logits, target, weight, radius, method):
    """Literal: gradient, matrix ``M`` and its largest eigenvalue or trace."""
    rows = [[mpmath.mpf(number) for number in row] for row in weight.tolist()]
    p, _ = mp_softmax(logits)
    offsets = [mpmath.matrix([a - b for a, b in zip(row, rows[target], strict=True)]) for row in rows]
    lengths = [mpmath.norm(offset) for offset in offsets]
    gradient = mpmath.norm(sum((q * a for q, a in zip(p, offsets, strict=True)), mpmath.zeros(weight.shape[1], 1)))
    matrix = mpmath.zeros(weight.shape[1])
    for q, a, length in zip(p, offsets, lengths, strict=True):
        matrix += q * mp_psi(radius * length) * a * a.T
    size = matrix.rows
    top = sum(matrix[i, i] for i in range(size)) if method == "trace" else max(mpmath.eigsy(matrix, eigvals_only=True))
    return mpmath.log1p(radius * gradient + radius**2 * top)


@pytest.mark.parametrize("method", ["bennett", "trace"])
@pytest.mark.parametrize("radius", [1e-9, 1e-4, 0.003, 0.1, 1.0, 10.0, 400.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 60.0])
def test_formula(scale, radius, method):
    problem = small_problem(scale=scale)
    values = loss_increase_bound(*problem[:3], radius, method=method)
    expected = [
        mp_bound(logits, target, problem.weight, radius, method)
        for logits, target in zip(problem.logits, problem.target.tolist(), strict=True)
    ]
    assert [float(value / mpmath.mpf(1)) for value in values.tolist()] == pytest.approx(
        [float(value) for value in expected], rel=1e-12, abs=0
    )


@pytest.mark.parametrize("radius", [1e-300, 1e-30, 1e3, 1e5, 1e30, 1e300])
@every_sound_method
def test_no_radius_overflows_or_underflows(method, radius):
    problem = small_problem()
    value = loss_increase_bound(*problem[:3], radius, method=method)
    if radius < 1:
        features_gradient = loss_increase_bound(*problem[:3], 1e-12, method=method) / 1e-12
        assert_close(value, radius * features_gradient, rtol=1e-9, atol=0)
    else:
        reach = radius * (problem.weight.double() - problem.weight[problem.target].double().unsqueeze(1)).norm(dim=2)
        assert_close(value, (problem.logits.double().log_softmax(1) + reach).amax(1), rtol=2e-3, atol=0)


@every_sound_method
def test_a_radius_beyond_all_numbers_has_no_bound(method):
    problem = small_problem()
    assert loss_increase_bound(*problem[:2], 10 * problem.weight, 1.7e308, method=method).isinf().all()


@pytest.mark.parametrize("classes", [20, 80])
def test_many_classes_are_16_exact_ones_and_the_trace_of_the_rest(classes):
    problem = small_problem(classes=classes, dim=8)
    radius, weight = 1.3, problem.weight.double()
    expected = []
    for logits, target in zip(problem.logits.double(), problem.target, strict=True):
        p, offsets = logits.softmax(0), weight - weight[target]
        lengths = offsets.norm(dim=1)
        reach = (radius * lengths).clamp(min=1e-9)
        parts = p * (reach.expm1() - reach) / reach.square()
        order = (parts * lengths.square()).argsort(descending=True)
        first, rest = order[:16], order[16:]
        top = torch.linalg.eigvalsh((parts[first, None] * offsets[first]).T @ offsets[first])[-1]
        quadratic = top + (parts * lengths.square())[rest].sum()
        expected.append(torch.log1p(radius * (p @ offsets).norm() + radius**2 * quadratic))
    assert_close(loss_increase_bound(*problem[:3], radius), torch.stack(expected), rtol=1e-9, atol=0)


def test_taylor():
    problem = small_problem()
    features = torch.tensor([[1.0, 2.0, 2.0]]).expand(3, 3)
    radii, norms = torch.tensor([0.1, 0.5, 2.0]), torch.full((3,), 3.0)
    kappa = relative_flatness(features, problem.weight, problem.logits, variant="layerwise")
    for constant, expected in [(0.0, 0.0), (None, 4 * 3 / 24), (2.5, 2.5)]:
        value = loss_increase_bound(*problem[:3], radii, method="taylor", feature_norm=norms, cubic_constant=constant)
        share = (radii / 3).double()
        assert_close(value, share.square() / 2 * kappa + expected * share**3)


def test_taylor_is_not_a_bound():
    """Its own docstring says so: it lacks the first-order term."""
    problem = small_problem()._replace(radius=torch.full((3,), 0.01))
    value = bound(HeadProblem(*(part.double() if part.is_floating_point() else part for part in problem)))
    taylor = loss_increase_bound(*problem, method="taylor", feature_norm=1.0, cubic_constant=0.0)
    assert (taylor < 0.5 * value).any()


# What holds for every problem


@every_sound_method
@given(seed=seeds)
@some_examples
def test_two_classes_are_exact(method, seed):
    problem = small_problem(seed, classes=2, scale=10.0, batch=2)
    problem = problem._replace(radius=torch.tensor([1e-6, 3.0]) * 10 ** (seed % 3 - 1))
    length = (problem.weight[0].double() - problem.weight[1].double()).norm()
    other = problem.logits.double().softmax(1).gather(1, 1 - problem.target.unsqueeze(1)).squeeze(1)
    exact = torch.log1p(other * torch.expm1(problem.radius.double() * length))
    assert_close(bound(problem, method), exact, rtol=1e-11, atol=0)


@every_sound_method
@given(seed=seeds)
@some_examples
def test_exact_to_first_order(method, seed):
    problem = small_problem(seed)._replace(radius=torch.full((3,), 1e-8))
    features = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    logits = problem.logits.double() + features @ problem.weight.double().T
    (gradient,) = torch.autograd.grad(cross_entropy(logits, problem.target, reduction="sum"), features)
    assert_close(bound(problem, method), gradient.norm(dim=1) * problem.radius, rtol=1e-5, atol=0)


@given(seed=seeds)
@some_examples
def test_refined_is_at_most_bennett_is_at_most_trace(seed):
    problem = random_problem(seed, batch=16)
    refined, bennett, trace = (bound(problem, method) for method in ("refined", "bennett", "trace"))
    assert (refined >= 0).all()
    assert (refined <= bennett).all()
    assert (bennett <= trace * (1 + 1e-12)).all()


@pytest.mark.parametrize(("method", "fall"), [("bennett", 1e-12), ("trace", 1e-12), ("refined", 0.1)])
@given(seed=seeds, factor=st.floats(1.0, 10.0))
@some_examples
def test_bounds_grow_with_the_radius(method, fall, seed, factor):
    problem = random_problem(seed, batch=16)
    if len(problem.weight) > 17:
        fall = max(fall, 1e-3)  # the classes told apart may change
    larger = bound(problem, method, radius=factor * problem.radius)
    assert (larger >= bound(problem, method) * (1 - fall)).all()


@every_sound_method
@given(seed=seeds, shift=st.floats(-100, 100), scale=st.floats(0.01, 100))
@some_examples
def test_invariances(method, seed, shift, scale):
    problem = random_problem(seed, batch=8)
    row = torch.linspace(-3, 3, problem.weight.shape[1], dtype=torch.float64)
    value = bound(problem, method)
    changes = {
        "logits": {"logits": problem.logits + shift},
        "rows": {"weight": problem.weight + row},
        "scale": {"weight": scale * problem.weight, "radius": problem.radius / scale},
    }
    for name, change in changes.items():
        # Whether a bound is refined, and how far, may turn on the last digit.
        tolerance = 0.1 if method == "refined" else 1e-7
        assert_close(bound(problem, method, **change), value, rtol=tolerance, atol=1e-200, msg=f"{name}: {{}}".format)
    order = torch.randperm(len(problem.weight))
    permuted = problem._replace(
        logits=problem.logits[:, order], weight=problem.weight[order], target=order.argsort()[problem.target]
    )
    assert_close(bound(permuted, method), value, rtol=tolerance, atol=1e-200)


@every_sound_method
def test_nearly_equal_rows_keep_their_digits(method):
    problem = small_problem(dim=3)
    weight = problem.weight.double()
    weight[1:] = weight[0] + 1e-9 * weight[1:]
    doubled = HeadProblem(problem.logits.double(), problem.target, weight, torch.full((3,), 1e9, dtype=torch.float64))
    offsets = weight - weight[0]  # exact to the last digit: the rows are nearly equal
    apart = bound(doubled, method, weight=1e9 * offsets, radius=torch.ones(3, dtype=torch.float64))
    assert_close(bound(doubled, method), apart, rtol=1e-9, atol=0)


@every_sound_method
def test_identical_rows_never_change_the_loss(method):
    problem = small_problem()
    assert_close(bound(problem, method, weight=torch.ones(4, 3)), torch.zeros(3, dtype=torch.float64))
    assert_close(bound(problem, method, radius=torch.zeros(3)), torch.zeros(3, dtype=torch.float64))
    merged = problem.weight.clone()
    merged[3] = merged[0]
    merged_classes = problem.logits[:, :3].clone()
    merged_classes[:, 0] = problem.logits[:, [0, 3]].logsumexp(1)
    three = HeadProblem(merged_classes[:1], problem.target[:1], merged[:3], problem.radius[:1])
    # The loss of class 0 of four is that of class 0 of three, and so is its largest increase.
    four = HeadProblem(problem.logits[:1], problem.target[:1], merged, problem.radius[:1])
    share = problem.logits[:1].softmax(1)[:, [0, 3]].double()
    assert_close(bound(four, method), bound(three, method), rtol=0.1, atol=float(share.sum()))


# The inverse


@pytest.mark.parametrize("method", [*SOUND, "taylor"])
@given(seed=seeds, increase=st.sampled_from([1e-9, 1e-3, 0.3, 2.0, 50.0, 1e4]))
@settings(max_examples=15)
def test_loss_radius_is_the_inverse(method, seed, increase):
    problem = random_problem(seed, batch=8)
    options = {"method": method} | ({"feature_norm": 2.0} if method == "taylor" else {})
    radius = loss_radius(*problem[:3], increase, **options)
    # `random_problem` cuts some rows off at 0: where all are cut off, they are equal, and no radius raises the loss.
    rows = problem.weight[problem.target].unsqueeze(1)
    constant = (problem.weight == rows).flatten(1).all(1).logical_and(torch.tensor(method != "taylor"))
    assert torch.equal(radius.isinf(), constant)
    problem = HeadProblem(problem.logits[~constant], problem.target[~constant], problem.weight, radius[~constant])
    radius = problem.radius
    value = loss_increase_bound(*problem[:3], radius, **options)
    assert (value <= increase).all()
    if method != "refined":  # which may fall a little, and is looser at a radius of its own
        beyond = loss_increase_bound(*problem[:3], radius * (1 + 1e-6), **options)
        assert (beyond > increase * (1 - 1e-12)).all() or len(problem.weight) > 17
    else:
        assert (radius >= loss_radius(*problem[:3], increase) * (1 - 1e-6)).all()


def test_loss_radius_per_sample_in_parts():
    problem = random_problem(3, batch=6)
    increases = torch.tensor([1e-6, 0.1, 0.5, 1.0, 3.0, 20.0])
    together = loss_radius(*problem[:3], increases)
    for i in range(6):
        alone = loss_radius(problem.logits[i : i + 1], problem.target[i : i + 1], problem.weight, float(increases[i]))
        assert_close(together[i : i + 1], alone, rtol=1e-6, atol=0)


def test_loss_radius_of_identical_rows_is_infinite():
    problem = small_problem()
    assert loss_radius(*problem[:2], torch.ones(4, 3), 0.5).isinf().all()


# The decision boundary


@given(seed=seeds)
@some_examples
def test_prediction_flips_at_the_decision_radius_and_not_before(seed):
    problem = random_problem(seed, batch=16)
    target = problem.logits.argmax(1)
    radius = decision_radius(problem.logits, target, problem.weight)
    offsets = problem.weight - problem.weight[target].unsqueeze(1)
    directions = offsets / offsets.norm(dim=2, keepdim=True).clamp(min=1e-12)
    directions = torch.cat([directions, torch.randn(16, 50, offsets.shape[2], dtype=torch.float64)], dim=1)
    directions = directions / directions.norm(dim=2, keepdim=True).clamp(min=1e-12)
    for factor, flips in [(0.999, False), (1.001, True)]:
        steps = factor * radius.view(-1, 1, 1) * directions
        predicted = (problem.logits.unsqueeze(1) + steps @ problem.weight.T).argmax(2)
        flipped = (predicted != target.unsqueeze(1)).any(1)
        assert flipped[radius > 0].eq(flips).all()  # where two logits are equal, no step is needed


def test_decision_radius_by_hand():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1e-6]])
    logits = torch.tensor([[3.0, 2.0, 1.0, 2.0], [3.0, 3.0, 1.0, 2.0], [1.0, 2.0, 3.0, 0.0]])
    radius = decision_radius(logits, torch.tensor([0, 0, 1]), weight)
    assert_close(radius, torch.tensor([2 / 2**0.5, 0.0, 0.0], dtype=torch.float64))
    near = decision_radius(torch.tensor([[1e-6, 0.0, -9.0, 0.0]]), torch.tensor([0]), weight)
    assert_close(near, torch.tensor([1.0], dtype=torch.float64), rtol=1e-6, atol=0)
    same = decision_radius(logits[:1], torch.tensor([0]), torch.ones(4, 2))
    assert same.isinf().all()


@given(seed=seeds)
@some_examples
def test_no_loss_that_keeps_the_label_flips_it(seed):
    """Below log 2, the target is still predicted: its loss radius is within its decision radius."""
    problem = random_problem(seed, batch=16)
    losses = cross_entropy(problem.logits, problem.target, reduction="none")
    kept = losses < 0.69
    logits, target = problem.logits[kept], problem.target[kept]
    if len(target):
        radius = loss_radius(logits, target, problem.weight, 0.6931 - losses[kept])
        assert (radius <= decision_radius(logits, target, problem.weight)).all()


# Sizes, dtypes and modes


def large_head(batch, classes, dim):
    weight = torch.randn(classes, dim) / dim**0.5
    target = torch.randint(classes, (batch,))
    features = 12 * weight[target] + torch.randn(batch, dim)
    return HeadProblem(features @ weight.T, target, weight, 0.2 * features.norm(dim=1))


@every_sound_method
def test_memory_at_1000_classes(method):
    problem = large_head(256, 1000, 2048)
    assert extra_memory(lambda: bound(problem, method)) < 100


def test_50257_classes():
    problem = large_head(64, 50257, 32)
    memory = extra_memory(lambda: bound(problem))
    values = bound(problem)
    assert memory < 200
    rows = torch.tensor([0, 40, 41, 63])  # on both sides of a chunk's end
    part = HeadProblem(problem.logits[rows], problem.target[rows], problem.weight, problem.radius[rows])
    assert_close(bound(part), values[rows], rtol=1e-10, atol=0)
    few = HeadProblem(*(part[i].double() if i != 1 else part[i] for i in range(4)))
    leaders = few.logits.topk(200, dim=1).indices
    for i in range(4):  # the other classes add less than the sixth digit
        kept = torch.cat([leaders[i][leaders[i] != few.target[i]], few.target[i : i + 1]])
        single = HeadProblem(
            few.logits[i : i + 1, kept], torch.tensor([len(kept) - 1]), few.weight[kept], few.radius[i : i + 1]
        )
        assert bound(few)[i] >= worst_case(single, 30) * 0.99


@every_sound_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_are_taken_as_they_are(method, dtype):
    logits, target, weight, radius = small_problem()
    logits, weight = logits.to(dtype), weight.to(dtype)
    value = loss_increase_bound(logits, target.int(), weight, radius, method=method)
    assert value.dtype == torch.float64
    assert_close(value, loss_increase_bound(logits.double(), target, weight.double(), radius, method=method))
    assert_close(decision_radius(logits, target, weight), decision_radius(logits.double(), target, weight.double()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes(mode):
    problem = random_problem(5, batch=16)
    outside = [bound(problem, method) for method in SOUND] + [loss_radius(*problem[:3], 0.5)]
    with mode():
        inside = [bound(HeadProblem(*(part.clone() for part in problem)), method) for method in SOUND]
        inside.append(loss_radius(*(part.clone() for part in problem[:3]), 0.5))
    for before, after in zip(outside, inside, strict=True):
        assert torch.equal(before, after)


@every_sound_method
def test_no_gradient_is_kept(method):
    problem = small_problem()
    value = bound(problem, method, weight=problem.weight.requires_grad_(), logits=problem.logits.requires_grad_())
    assert not value.requires_grad


@pytest.mark.parametrize("method", SOUND)
def test_empty_batch(method):
    logits, target, weight, radius = (part[:0] if i != 2 else part for i, part in enumerate(small_problem()))
    assert loss_increase_bound(logits, target, weight, radius, method=method).shape == (0,)
    assert loss_radius(logits, target, weight, 0.1, method=method).shape == (0,)
    assert decision_radius(logits, target, weight).shape == (0,)


def test_trace_is_flatness_at_small_radii():
    """``tr M(0) = (κ / ‖φ‖² + ‖g‖²) / 2``."""
    problem = small_problem()
    features = torch.ones(3, 3)
    curvature = flatness_factors(features, problem.weight, problem.logits).curvature.linear()
    radius = 1e-4
    gradient = loss_increase_bound(*problem[:3], 1e-12).expm1() / 1e-12
    trace = (loss_increase_bound(*problem[:3], radius, method="trace").expm1() - radius * gradient) / radius**2
    assert_close(trace, (curvature + gradient.square()) / 2, rtol=1e-3, atol=1e-6)


def test_worst_case_is_found_where_it_is_known():
    """The oracle itself: two classes in closed form, and no start of many does better."""
    problem = small_problem(classes=2, batch=2)
    problem = HeadProblem(*(part.double() if part.is_floating_point() else part for part in problem))
    assert_close(worst_case(problem), bound(problem), rtol=1e-9, atol=0)
    problem = random_problem(11)
    assert_close(worst_case(problem), worst_case(problem, random_starts=40), rtol=1e-6, atol=1e-15)
    assert len(set((problem.radius / problem.radius[0]).tolist())) > len(FRACTIONS)


# Errors

PROBLEM = small_problem()


def raises(text):
    return pytest.raises(ValueError, match=re.escape(text))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"logits": torch.ones(3)}, "`logits` must have 2 dimensions, got shape (3,)"),
        ({"logits": torch.ones(3, 5)}, "`logits` must have one column per row of `weight` (4), got 5."),
        ({"logits": torch.ones(3, 4, dtype=torch.int64)}, "`logits` must be floating point, got torch.int64."),
        ({"weight": torch.ones(4)}, "`weight` must have 2 dimensions, got shape (4,)"),
        (
            {"target": torch.tensor([0, 1])},
            "`target` must hold one class index per sample, shape (3,), got torch.int64",
        ),
        (
            {"target": torch.ones(3)},
            "`target` must hold one class index per sample, shape (3,), got torch.float32 (3,).",
        ),
        ({"target": torch.tensor([0, 4, 1])}, "`target` must be in [0, 4), got 4; leave ignored samples out."),
        ({"target": torch.tensor([0, -100, 1])}, "`target` must be in [0, 4), got -100; leave ignored samples out."),
        ({"logits": torch.full((3, 4), torch.nan)}, "`logits` must be finite, got nan at [0, 0]."),
        (
            {"weight": 1e-170 * torch.ones(4, 3, dtype=torch.float64)},
            "`weight` must have its largest entry between 1e-100 and 1e+100, got 1e-170; rescale it",
        ),
        (
            {"weight": 1e160 * torch.ones(4, 3, dtype=torch.float64)},
            "`weight` must have its largest entry between 1e-100 and 1e+100, got 1e+160; rescale it",
        ),
        ({"weight": torch.full((4, 3), torch.inf)}, "`weight` must be finite, got inf at [0, 0]."),
    ],
)
@pytest.mark.parametrize("function", ["bound", "loss_radius", "decision_radius"])
def test_bad_heads(function, changes, text, unchecked_shapes):
    problem = PROBLEM._replace(**changes)
    with unchecked_shapes, raises(text):
        if function == "bound":
            bound(problem)
        elif function == "loss_radius":
            loss_radius(*problem[:3], 0.5)
        else:
            decision_radius(*problem[:3])


def test_one_class(unchecked_shapes):
    with unchecked_shapes, raises("`logits` must have at least 2 columns, one per class, got 1."):
        decision_radius(torch.ones(3, 1), torch.zeros(3, dtype=torch.long), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("radius", "text"),
    [
        (-0.1, "`radius` must be >= 0, got -0.1."),
        (torch.tensor([0.0, -2.5, -1.0]), "`radius` must be >= 0, got -2.5."),
        (float("nan"), "`radius` must be finite, got nan at []."),
        (torch.tensor([1.0, torch.inf, 1.0]), "`radius` must be finite, got inf at [1]."),
        (torch.ones(2), "`radius` must be a number or hold one per sample (3), got shape (2,)."),
        (torch.ones(3, 1), "`radius` must be a number or hold one per sample (3), got shape (3, 1)."),
    ],
)
def test_bad_radius(radius, text, unchecked_shapes):
    with unchecked_shapes, raises(text):
        bound(PROBLEM, radius=radius)


@pytest.mark.parametrize(
    ("increase", "text"),
    [
        (0.0, "`loss_increase` must be > 0, got 0."),
        (torch.tensor([1.0, -0.5, 1.0]), "`loss_increase` must be > 0, got -0.5."),
        (float("inf"), "`loss_increase` must be finite, got inf at []."),
    ],
)
def test_bad_increase(increase, text):
    with raises(text):
        loss_radius(*PROBLEM[:3], increase)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "tight"}, "`method` must be one of bennett, trace, refined, taylor, got 'tight'."),
        ({"method": "taylor"}, "`feature_norm` must be given for method='taylor', got None."),
        ({"feature_norm": 1.0}, "`feature_norm` and `cubic_constant` are for method='taylor' only, got 'bennett'."),
        ({"cubic_constant": 1.0}, "`feature_norm` and `cubic_constant` are for method='taylor' only, got 'bennett'."),
        ({"method": "taylor", "feature_norm": 0.0}, "`feature_norm` must be > 0, got 0."),
        (
            {"method": "taylor", "feature_norm": 1.0, "cubic_constant": -1.0},
            "`cubic_constant` must be >= 0 and finite, got -1.0.",
        ),
    ],
)
def test_bad_options(options, text, unchecked_shapes):
    with unchecked_shapes:
        with raises(text):
            loss_increase_bound(*PROBLEM, **options)
        with raises(text):
            loss_radius(*PROBLEM[:3], 0.5, **options)
