"""What torchmetrics promises of every metric, for those of attacks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection

from lightning_flatness.metrics import AttackSuccessRate, RobustAccuracy, RobustAccuracyCurve
from tests.metrics.outcomes import ARGUMENTS, ATTACKS, EPSILONS, NUM_CLASSES, arguments, outcomes, plain

MAKE = {
    "AttackSuccessRate": lambda **settings: AttackSuccessRate(num_classes=NUM_CLASSES, **settings),
    "RobustAccuracy": lambda **settings: RobustAccuracy(ATTACKS, **settings),
    "RobustAccuracyCurve": lambda **settings: RobustAccuracyCurve(EPSILONS, **settings),
}
every_metric = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


def inputs_of(metric, rows):
    return arguments(outcomes()[rows], *ARGUMENTS[type(metric).__name__])


def updated(metric, *parts):
    for rows in parts or (slice(None),):
        metric.update(**inputs_of(metric, rows))
    return metric


def assert_same(metric, other):
    result, expected = plain(metric.compute()), plain(other.compute())
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name


class _NoWaiting(TorchDispatchMode):
    """Refuse what makes the CPU wait for numbers of another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten.bincount,
        }, func
        return func(*args, **(kwargs or {}))


@every_metric
def test_update_does_not_wait_for_the_device(make):
    metric = make()
    inputs = inputs_of(metric, slice(None))
    with _NoWaiting():
        metric.update(**inputs)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            bool(inputs["initially_correct"].any())
    assert_same(metric, updated(make()))


OTHERS = {
    "threshold": (AttackSuccessRate, {"loss_threshold": 2.0}),
    "classes": (AttackSuccessRate, {"num_classes": NUM_CLASSES + 1}),
    "confidence": (AttackSuccessRate, {"confidence": 0.9}),
    "accuracy": (RobustAccuracy, {"attacks": ATTACKS, "confidence": 0.9}),
    "order": (RobustAccuracy, {"attacks": ATTACKS[::-1]}),
    "curve": (RobustAccuracyCurve, {"epsilons": EPSILONS, "confidence": 0.9}),
    "radii": (RobustAccuracyCurve, {"epsilons": [2 * epsilon for epsilon in EPSILONS]}),
}


@pytest.mark.parametrize("compute_groups", [True, False])
@pytest.mark.parametrize("silent", [True, False])
def test_a_collection_gives_each_configuration_its_own_result(silent, compute_groups):
    """With a first batch that leaves all counts at 0, the states of all metrics of a class are equal."""

    def metrics():
        return {name: make() for name, make in MAKE.items()} | {
            name: make(**settings) for name, (make, settings) in OTHERS.items()
        }

    every_argument = dict.fromkeys(name for names in ARGUMENTS.values() for name in names)
    batches = [outcomes()[:0]] if silent else []
    batches += [outcomes()[:15], outcomes()[15:]]
    collection, alone = MetricCollection(metrics(), compute_groups=compute_groups), metrics()
    for batch in batches:
        collection.update(**arguments(batch, *every_argument))
        for metric in alone.values():
            metric.update(**arguments(batch, *ARGUMENTS[type(metric).__name__]))
    collection.compute()
    for name, metric in alone.items():
        assert_same(collection[name], metric)
        if isinstance(metric, AttackSuccessRate):
            assert collection[name].per_class.keys() == metric.per_class.keys()


@pytest.mark.parametrize("name", ["AttackSuccessRate", "RobustAccuracy"])
def test_plot_shows_a_list_of_values_as_curves_of_the_rates(name):
    metric = MAKE[name]()
    values = [updated(MAKE[name](), slice(0, stop)).compute() for stop in (10, 20, 40)]
    _, axes = metric.plot(values)
    rate = "success_rate" if name == "AttackSuccessRate" else "worst_case"
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn[rate] == pytest.approx([float(value[rate]) for value in values])
    assert drawn.keys().isdisjoint({"samples", f"{rate}_low", "loss_increase"})


def test_plot_shows_curves_of_which_a_value_is_missing():
    metric = AttackSuccessRate()
    metric.update(torch.tensor([False]), torch.tensor([False]))
    early = metric.compute()
    metric.update(torch.tensor([True]), torch.tensor([True]))
    _, axes = metric.plot([early, metric.compute()])
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["success_rate"][1] == 1
    assert drawn["robust_accuracy"] == [0, 0]


def test_plot_of_the_curve_begins_at_the_clean_accuracy_and_shows_the_interval():
    values = [updated(MAKE["RobustAccuracyCurve"](), slice(0, stop)).compute() for stop in (20, 40)]
    metric = MAKE["RobustAccuracyCurve"]()
    figure, axes = metric.plot(values[1])
    (line,) = axes.lines
    assert list(line.get_xdata()) == pytest.approx([0, *EPSILONS])
    assert list(line.get_ydata()) == pytest.approx(values[1]["robust_accuracy"].tolist())
    assert len(axes.collections) == 1
    again, same = metric.plot(values, ax=axes)
    assert same is axes
    assert again is None
    assert len(axes.lines) == len(axes.collections) == 3
    assert figure.axes == [axes]


@every_metric
def test_plot_without_samples_is_empty(make):
    metric = make()
    metric.update(**inputs_of(metric, slice(0, 0)))
    assert not metric.plot()[1].lines
