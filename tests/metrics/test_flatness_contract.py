"""What torchmetrics promises, where it concerns the settings of the metrics of flatness."""

import pickle
from copy import deepcopy
from itertools import permutations
from typing import get_args

import pytest
import torch
from torch.nn.functional import log_softmax
from torchmetrics import MetricCollection

from lightning_flatness.functional.losses import LossName
from lightning_flatness.metrics import HeadTopEigenvalue, RelativeFlatness
from tests.metrics.problems import head_inputs, of_samples, scalars, without

METRICS = pytest.mark.parametrize("metric", [RelativeFlatness(), HeadTopEigenvalue()], ids=["flatness", "top"])

MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}
ORDERS = list(permutations(MODES))


def update(metric, rows=slice(None), **changes):
    """Add samples to either metric, which differ in whether they want the head."""
    needless = () if isinstance(metric, RelativeFlatness) else ("weight", "bias")
    metric.update(**without(of_samples(head_inputs() | changes, rows), *needless))


def updated(metric, *parts):
    metric = deepcopy(metric)
    for rows in parts or (slice(None),):
        update(metric, rows)
    return metric


def assert_same(metric, other):
    values, expected = metric.compute(), other.compute()
    if isinstance(values, torch.Tensor):
        values, expected = {"": values}, {"": expected}
    assert scalars(values) == pytest.approx(scalars(expected), rel=1e-12)


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("metric", [RelativeFlatness, HeadTopEigenvalue])
def test_can_be_pickled_with_every_named_loss(metric, loss):
    duplicate = pickle.loads(pickle.dumps(metric(loss=loss)))  # noqa: S301
    target = head_inputs()["target"] if loss == "focal" else head_inputs()["logits"].softmax(1)
    results = []
    for each in (duplicate, metric(loss=loss)):
        update(each, target=target)
        results.append(each)
    assert_same(*results)


def test_forward_keeps_no_more_samples_than_update():
    metric, called = HeadTopEigenvalue(max_samples=15), HeadTopEigenvalue(max_samples=15)
    for rows in torch.arange(40).split(10):
        value = called(**without(of_samples(head_inputs(), rows), "weight", "bias"))
        assert float(value) == pytest.approx(float(updated(metric, rows).compute()), rel=1e-12)
    assert_same(called, updated(metric, *torch.arange(40).split(10)))


@pytest.mark.parametrize("variant", ["neuronwise", "maxeig"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_set_dtype_computes_in_single_precision(when, variant):
    metric = RelativeFlatness(variant)
    if when == "between":
        update(metric)
    metric.set_dtype(torch.float32)
    update(metric)
    assert metric.sums.dtype == torch.float32
    assert metric.compute()["relative_flatness"].dtype == torch.float32
    result = {name: float(value) for name, value in metric.compute().items()}
    assert result == pytest.approx(scalars(updated(RelativeFlatness(variant)).compute()), rel=1e-5)


@pytest.mark.parametrize("when", ["before", "between"])
def test_set_dtype_leaves_the_targets_of_the_eigenvalue_classes(when):
    metric = HeadTopEigenvalue()
    if when == "between":
        update(metric, slice(0, 10))
    metric.set_dtype(torch.float64)
    update(metric, slice(0 if when == "before" else 10, 40))
    assert float(metric.compute()) == pytest.approx(float(updated(HeadTopEigenvalue()).compute()), rel=2e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "make", [RelativeFlatness, lambda **loss: RelativeFlatness("maxeig", **loss), HeadTopEigenvalue]
)
def test_a_function_as_the_loss_works_in_any_gradient_mode(make, mode):
    def cross_entropy(logits, target):
        return -log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)

    with MODES[mode]():
        results = [updated(metric, slice(0, 8)).compute() for metric in (make(loss=cross_entropy), make())]
    value, expected = (float(result["p90"] if isinstance(result, dict) else result) for result in results)
    assert value == pytest.approx(expected, rel=2e-4)


CONFIGURATIONS = {
    "variants": lambda: (RelativeFlatness(), RelativeFlatness("layerwise")),
    "losses": lambda: (RelativeFlatness(), RelativeFlatness(loss="focal")),
    "bias": lambda: (RelativeFlatness(), RelativeFlatness(include_bias=True)),
}


@pytest.mark.parametrize("compute_groups", [True, False])
@pytest.mark.parametrize("configurations", CONFIGURATIONS)
@pytest.mark.parametrize("first", ["ordinary", "ignored"])
def test_a_collection_gives_each_configuration_its_own_result(first, configurations, compute_groups):
    one, other = CONFIGURATIONS[configurations]()
    collection = MetricCollection({"one": one, "other": other}, compute_groups=compute_groups)
    batches = [of_samples(head_inputs(), slice(0, 10))]
    if first == "ignored":
        batches[0]["target"] = torch.full_like(batches[0]["target"], -100)
    batches += [of_samples(head_inputs(), slice(10, 25)), of_samples(head_inputs(), slice(25, 40))]
    for batch in batches:
        collection.update(**batch)
    result = scalars(collection.compute())
    for name, metric in zip(("one", "other"), CONFIGURATIONS[configurations](), strict=True):
        for batch in batches:
            metric.update(**batch)
        expected = {f"{name}_{key}": value for key, value in scalars(metric.compute()).items()}
        assert {key: result[key] for key in expected} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("compute_groups", [True, False])
@pytest.mark.parametrize("settings", [{"max_samples": 15}, {"include_bias": True}, {"loss": "focal"}], ids=str)
def test_a_collection_gives_each_eigenvalue_its_own_result(settings, compute_groups):
    collection = MetricCollection(
        {"one": HeadTopEigenvalue(), "other": HeadTopEigenvalue(**settings)}, compute_groups=compute_groups
    )
    for rows in torch.arange(40).split(10):
        collection.update(**without(of_samples(head_inputs(), rows), "weight", "bias"))
    result = scalars(collection.compute())
    for name, metric in (("one", HeadTopEigenvalue()), ("other", HeadTopEigenvalue(**settings))):
        assert result[name] == pytest.approx(float(updated(metric, *torch.arange(40).split(10)).compute()), rel=1e-6)


@METRICS
def test_plot_shows_a_list_of_values_as_curves(metric):
    values = [updated(metric, slice(0, stop)).compute() for stop in (10, 20, 40)]
    _, axes = metric.plot(values)
    expected = [float(value["median"] if isinstance(value, dict) else value) for value in values]
    drawn = [line.get_ydata() for line in axes.lines]
    assert any(len(line) == 3 and list(line) == pytest.approx(expected, rel=1e-6) for line in drawn)


def test_plot_shows_curves_of_which_a_value_is_missing():
    metric = RelativeFlatness()
    early = updated(metric).compute()
    update(metric, target=head_inputs()["logits"].argmax(1))
    late = metric.compute()
    assert "wrong" in early
    assert "wrong" not in late
    _, axes = metric.plot([early, late])
    assert axes.lines
