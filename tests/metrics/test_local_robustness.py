"""The metrics of bounds against sample-by-sample computation, under any batching, and what torchmetrics promises."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from lightning_flatness.functional import decision_radius, loss_change, loss_increase_bound
from lightning_flatness.functional.statistics import wilson_interval
from lightning_flatness.metrics import LocalRobustnessBound, LossBoundCheck
from lightning_flatness.metrics import loss_bound_check as check_module

RADII = (0.02, 0.1, 0.5)
EPSILON = 0.1


def problem(samples=40, *, seed=0, dtype=torch.float64):
    """Arguments of both metrics' ``update``; most samples are right, a few are not moved."""
    generator = torch.Generator().manual_seed(seed)
    parts = ((samples, 6), (5, 6), (samples, 6))
    features, weight, shift = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in parts)
    logits = features @ weight.T
    target = torch.where(torch.arange(samples) % 4 > 0, logits.argmax(1), 0)
    shift = 0.3 * shift * (torch.arange(samples) % 5 > 0).unsqueeze(1)
    lipschitz = 4 * torch.rand(samples, generator=generator, dtype=torch.float64)
    floats = {"logits": logits, "weight": weight, "lipschitz": lipschitz, "features": features}
    floats["features_adv"] = features + shift
    return {name: tensor.to(dtype) for name, tensor in floats.items()} | {"target": target}


NAMES = {
    "LocalRobustnessBound": ("logits", "target", "weight", "lipschitz"),
    "LossBoundCheck": ("logits", "target", "weight", "features", "features_adv"),
}
MAKE = {
    "LocalRobustnessBound": lambda **settings: LocalRobustnessBound(RADII, EPSILON, **settings),
    "LossBoundCheck": LossBoundCheck,
}
every_metric = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def inputs_of(metric, rows=slice(None), **changes):
    inputs = {**problem(), **changes}
    return {name: inputs[name] if name == "weight" else inputs[name][rows] for name in NAMES[type(metric).__name__]}


def updated(metric, *parts):
    for rows in parts or (slice(None),):
        metric.update(**inputs_of(metric, rows))
    return metric


def plain(result):
    return {name: value.item() for name, value in result.items()}


def assert_same(metric, other):
    result, expected = plain(metric.compute()), plain(other.compute())
    assert result == {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}


def quantile(values, probability):
    return sorted(values)[math.ceil(probability * len(values)) - 1]


def bounds_by_hand(inputs, kind="estimated"):
    """What ``LocalRobustnessBound.compute`` must return, one sample after the other."""
    logits, target, weight, lipschitz = (inputs[name] for name in NAMES["LocalRobustnessBound"])
    radius = decision_radius(logits, target, weight).tolist()
    constant = lipschitz.tolist()
    increase = loss_increase_bound(logits, target, weight, EPSILON * lipschitz).tolist()
    loss = cross_entropy(logits, target, reduction="none").tolist()
    lengths = [r / c for r, c in zip(radius, constant, strict=True)]
    count = len(radius)
    expected = {
        "decision_radius_median": pytest.approx(quantile(radius, 0.5), rel=0.011),
        f"{kind}_radius_median": pytest.approx(quantile(lengths, 0.5), rel=0.011),
        f"{kind}_radius_p10": pytest.approx(quantile(lengths, 0.1), rel=0.011),
        f"{kind}_radius_mean": pytest.approx(math.fsum(lengths) / count, rel=1e-12),
        "loss_increase": pytest.approx(math.fsum(increase) / count, rel=1e-12),
        f"{kind}_loss_below_log2": sum(a + b < math.log(2) for a, b in zip(loss, increase, strict=True)) / count,
        f"lipschitz_{kind}": max(constant),
        "samples": count,
        "nonfinite": 0,
    }
    for limit in RADII:
        right = (logits.argmax(1) == target).tolist()
        standing = sum(one and r > limit * c for one, r, c in zip(right, radius, constant, strict=True))
        low, high = wilson_interval(torch.tensor(standing), torch.tensor(count))
        name = f"{kind}_accuracy_{limit:g}"
        expected |= {name: standing / count, f"{name}_low": low.item(), f"{name}_high": high.item()}
    return expected


def check_by_hand(inputs):
    logits, target, weight, features, features_adv = (inputs[name] for name in NAMES["LossBoundCheck"])
    shift = features_adv - features
    length = shift.norm(dim=1)
    change = loss_change(logits, target, weight, shift).tolist()
    bound = loss_increase_bound(logits, target, weight, length).tolist()
    norm = features.norm(dim=1)
    taylor = loss_increase_bound(logits, target, weight, length, method="taylor", feature_norm=norm).tolist()
    moved = [k for k, distance in enumerate(length.tolist()) if distance > 0]
    ratios = [bound[k] / change[k] for k in moved if change[k] > 1e-3]
    return {
        "violation_rate": sum(change[k] > bound[k] + 1e-6 for k in moved) / len(moved),
        "taylor_violation_rate": sum(change[k] > taylor[k] + 1e-6 for k in moved) / len(moved),
        "tightness": pytest.approx(quantile(ratios, 0.5), rel=0.011),
    }


@pytest.mark.parametrize("certified", [True, False])
def test_values_are_those_of_each_sample(certified):
    metric = updated(LocalRobustnessBound(RADII, EPSILON, certified=certified))
    values = plain(metric.compute())
    kind = "certified" if certified else "estimated"
    assert values == bounds_by_hand(problem(), kind)
    assert 0 < values[f"{kind}_loss_below_log2"] < 1
    assert not any(("estimated" if certified else "certified") in name for name in values)


def test_check_is_that_of_each_sample():
    values = plain(updated(LossBoundCheck()).compute())
    assert values == check_by_hand(problem())
    assert values["violation_rate"] == 0
    assert values["tightness"] >= 0.99


def test_taylor_bound_has_the_constant_asked_for():
    rates = [
        updated(LossBoundCheck(cubic_constant=constant)).compute()["taylor_violation_rate"] for constant in (0.0, 1e9)
    ]
    assert rates[0] > rates[1] == 0


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), name=st.sampled_from(sorted(MAKE)))
def test_batches_do_not_matter(cuts, name):
    edges = [0, *sorted(cuts), 40]
    parts = [slice(start, stop) for start, stop in pairwise(edges)]
    assert_same(updated(MAKE[name](), *parts), updated(MAKE[name]()))


def test_one_constant_for_all_samples():
    metric, other = LocalRobustnessBound(RADII, EPSILON), LocalRobustnessBound(RADII, EPSILON)
    metric.update(**{**inputs_of(metric), "lipschitz": 2.0})
    other.update(**{**inputs_of(metric), "lipschitz": torch.full((40,), 2.0)})
    assert_same(metric, other)


@pytest.mark.parametrize("method", ["bennett", "trace", "refined"])
def test_method_is_that_of_the_bound(method):
    inputs = problem()
    metric = updated(LocalRobustnessBound(RADII, EPSILON, method=method))
    radius = EPSILON * inputs["lipschitz"]
    bound = loss_increase_bound(inputs["logits"], inputs["target"], inputs["weight"], radius, method=method)
    assert metric.compute()["loss_increase"].item() == pytest.approx(bound.mean().item(), rel=1e-12)


def test_radii_by_name():
    metric = updated(LocalRobustnessBound({"8_255": 8 / 255}, 8 / 255, certified=True))
    assert {"certified_accuracy_8_255", "certified_accuracy_8_255_low"} <= set(metric.compute())


def test_reach_that_is_known_of_some():
    metric = LossBoundCheck()
    inputs = inputs_of(metric)
    length = (inputs["features_adv"] - inputs["features"]).norm(dim=1)
    rows = length.nonzero().squeeze(1)[:6]
    factors = torch.tensor([0.5, 2.0, 1.0, 0.0, 0.999, 1.001], dtype=length.dtype)
    reach = torch.full_like(length, torch.nan).index_copy(0, rows, factors * length[rows])
    metric.update(**inputs, reach=reach)
    assert metric.compute()["lipschitz_violation_rate"] == 3 / 6


class TestWhatCannotBeHad:
    def test_no_sample(self):
        assert plain(updated(MAKE["LocalRobustnessBound"](), slice(0, 0)).compute()) == {"samples": 0, "nonfinite": 0}
        assert updated(LossBoundCheck(), slice(0, 0)).compute() == {}

    def test_features_that_do_not_move_with_the_inputs_have_no_finite_radius(self):
        metric = MAKE["LocalRobustnessBound"]()
        lipschitz = torch.where(torch.arange(40) % 4 == 1, problem()["lipschitz"], 0.0)
        metric.update(**inputs_of(metric, lipschitz=lipschitz))
        values = plain(metric.compute())
        # Three of four are right, of which two have no finite radius.
        assert "estimated_radius_median" not in values
        assert values["estimated_radius_p10"] == 0
        radius = decision_radius(*(problem()[name] for name in ("logits", "target", "weight")))
        finite = (radius / lipschitz)[(lipschitz > 0) | (radius == 0)].nan_to_num()
        assert values["estimated_radius_mean"] == pytest.approx(finite.mean().item())
        assert values["estimated_accuracy_0.5"] >= 0.5

    def test_rows_of_the_head_that_are_equal(self):
        metric = MAKE["LocalRobustnessBound"]()
        logits = torch.tensor([[1.0, 0.0]])
        metric.update(logits, torch.tensor([0]), torch.ones(2, 3), 1.0)
        values = plain(metric.compute())
        assert not {"decision_radius_median", "estimated_radius_median", "estimated_radius_mean"} & set(values)
        assert values["estimated_accuracy_0.5"] == 1

    def test_nothing_has_moved(self):
        metric = LossBoundCheck()
        features = problem()["features"]
        metric.update(**inputs_of(metric, features_adv=features))
        assert metric.compute() == {}

    def test_no_loss_that_rose(self):
        metric = LossBoundCheck()
        # Each sample goes towards its own class.
        inputs = problem()
        weight = inputs["weight"]
        towards = inputs["features"] + 1e-3 * (weight[inputs["target"]] - weight.mean(0))
        metric.update(**inputs_of(metric, features_adv=towards))
        assert set(metric.compute()) == {"violation_rate", "taylor_violation_rate"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
class TestNonfinite:
    def test_samples_are_guaranteed_nothing(self, value):
        metric = MAKE["LocalRobustnessBound"]()
        logits, lipschitz = problem()["logits"].clone(), problem()["lipschitz"].clone()
        logits[3, 0] = value
        lipschitz[5] = math.nan
        metric.update(**inputs_of(metric, logits=logits, lipschitz=lipschitz))
        rest = MAKE["LocalRobustnessBound"]()
        rest.update(**inputs_of(rest, torch.tensor([k for k in range(40) if k not in {3, 5}])))
        values, of_rest = plain(metric.compute()), plain(rest.compute())
        assert (values["samples"], values["nonfinite"]) == (40, 2)
        for name in ("estimated_accuracy_0.02", "estimated_loss_below_log2"):
            assert values[name] == pytest.approx(of_rest[name] * 38 / 40)
        assert values["loss_increase"] == pytest.approx(of_rest["loss_increase"])
        assert values["estimated_radius_mean"] == pytest.approx(of_rest["estimated_radius_mean"] * 38 / 40)

    def test_weight(self, value):
        metric, check = (make() for make in MAKE.values())
        weight = problem()["weight"].clone()
        weight[0, 0] = value
        metric.update(**inputs_of(metric, weight=weight))
        check.update(**inputs_of(check, weight=weight))
        assert metric.compute()["nonfinite"] == 40
        assert metric.compute()["estimated_accuracy_0.02"] == 0
        assert check.compute() == {}

    @pytest.mark.parametrize("name", ["logits", "features", "features_adv"])
    def test_attacked_samples_are_left_out(self, name, value):
        metric, rest = LossBoundCheck(), LossBoundCheck()
        tensor = problem()[name].clone()
        tensor[7] = value
        metric.update(**inputs_of(metric, **{name: tensor}))
        rest.update(**inputs_of(rest, torch.tensor([k for k in range(40) if k != 7])))
        assert_same(metric, rest)


def test_violation_is_seen(monkeypatch):
    """With a bound that is none."""
    monkeypatch.setattr(check_module, "loss_increase_bound", lambda logits, *_, **__: torch.zeros(len(logits)).double())
    assert updated(LossBoundCheck()).compute()["violation_rate"] > 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e4])
def test_exact_bound_of_two_classes_is_no_violation(scale):
    """Where the bound is attained, only rounding is between both."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, generator=generator)
    features = torch.randn(500, 4, generator=generator)
    target = torch.randint(2, (500,), generator=generator)
    worst = weight[1 - target] - weight[target]
    metric = LossBoundCheck()
    metric.update(features @ weight.T, target, weight, features.double(), features.double() + scale * worst.double())
    values = metric.compute()
    assert values["violation_rate"] == 0
    if scale > 1e-3:
        assert values["tightness"] == pytest.approx(1, rel=0.011)


# The contract


@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_gives_each_configuration_its_own_result(compute_groups):
    def metrics():
        return {
            "plain": LocalRobustnessBound(RADII, EPSILON),
            "other radii": LocalRobustnessBound([0.3, 0.4, 0.6], EPSILON),
            "epsilon": LocalRobustnessBound(RADII, 2 * EPSILON),
            "trace": LocalRobustnessBound(RADII, EPSILON, method="trace"),
            "certified": LocalRobustnessBound(RADII, EPSILON, certified=True),
        }

    collection = MetricCollection(metrics(), compute_groups=compute_groups)
    for rows in (slice(0, 0), slice(0, 15), slice(15, 40)):
        collection.update(**inputs_of(collection["plain"], rows))
    collection.compute()
    for name, metric in metrics().items():
        assert_same(collection[name], updated(metric, slice(0, 15), slice(15, 40)))


def test_plot_shows_a_list_of_values_as_curves_of_the_accuracies():
    values = [updated(MAKE["LocalRobustnessBound"](), slice(0, stop)).compute() for stop in (10, 40)]
    _, axes = MAKE["LocalRobustnessBound"]().plot(values)
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn.keys() == {f"estimated_accuracy_{radius:g}" for radius in RADII}
    assert drawn["estimated_accuracy_0.1"] == [value["estimated_accuracy_0.1"].item() for value in values]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radii": []}, r"`radii` must be at least one number, > 0 and finite, got \[\]\."),
        ({"radii": [0.1, -0.2]}, r"`radii` must be at least one number, > 0 and finite, got \[0\.1, -0\.2\]\."),
        ({"radii": {"a": math.inf}}, r"`radii` must be at least one number, > 0 and finite, got \[inf\]\."),
        ({"radii": [math.nan]}, r"`radii` must be at least one number, > 0 and finite, got \[nan\]\."),
        ({"radii": [0.1, 0.10000001]}, r"`radii` must differ in their first 6 digits, .* got \[0\.1, 0\.10000001\]\."),
        ({"epsilon": 0.0}, r"`epsilon` must be > 0 and finite, got 0\.0\."),
        ({"epsilon": math.nan}, r"`epsilon` must be > 0 and finite, got nan\."),
        ({"method": "taylor"}, r"`method` must bound the loss of every sample, got 'taylor', which does not\."),
        ({"method": "tight"}, r"`method` must be one of bennett, trace, refined, taylor, got 'tight'\."),
        ({"confidence": 1.0}, r"`confidence` must be between 0 and 1, got 1\.0\."),
    ],
    ids=str,
)
def test_arguments_are_checked(settings, message, unchecked_shapes):
    with unchecked_shapes, pytest.raises(ValueError, match=f"^{message}$"):
        LocalRobustnessBound(**{"radii": RADII, "epsilon": EPSILON, **settings})


@pytest.mark.parametrize(
    ("lipschitz", "message"),
    [
        (-1.0, r"`lipschitz` must be >= 0, got -1\."),
        (torch.ones(3), r"`lipschitz` must be a number or hold one per sample \(40\), got shape \(3,\)\."),
    ],
)
def test_lipschitz_constants_are_checked(lipschitz, message, unchecked_shapes):
    metric = MAKE["LocalRobustnessBound"]()
    with unchecked_shapes, pytest.raises(ValueError, match=f"^{message}$"):
        metric.update(**{**inputs_of(metric), "lipschitz": lipschitz})


def test_arguments_of_the_check_are_checked(unchecked_shapes):
    with pytest.raises(ValueError, match=r"^`method` must bound the loss of every sample, got 'taylor'"):
        LossBoundCheck("taylor")
    with pytest.raises(ValueError, match=r"^`cubic_constant` must be >= 0 and finite, got -1\.0\.$"):
        LossBoundCheck(cubic_constant=-1.0)
    metric = LossBoundCheck()
    message = r"^`features_adv` must have the shape of `features`, \(40, 6\), got \(40, 5\)\.$"
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        metric.update(**inputs_of(metric, features_adv=torch.zeros(40, 5)))
