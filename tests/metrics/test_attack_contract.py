"""What torchmetrics promises of every metric, for those of attacks."""

import pickle
from copy import deepcopy
from itertools import permutations

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


@every_metric
@pytest.mark.parametrize(
    "copy",
    [lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric.clone(), deepcopy],  # noqa: S301
)
def test_a_copy_goes_on_by_itself(copy, make):
    metric = updated(make(), slice(0, 10))
    duplicate = copy(metric)
    updated(duplicate, slice(10, 40))
    assert_same(duplicate, updated(make()))
    assert_same(metric, updated(make(), slice(0, 10)))


@every_metric
def test_reset_forgets_everything(make):
    metric = updated(make())
    metric.compute()
    metric.reset()
    assert_same(updated(metric, slice(5, 15)), updated(make(), slice(5, 15)))


def test_reset_forgets_the_classes():
    metric = updated(MAKE["AttackSuccessRate"]())
    metric.compute()
    assert metric.per_class
    metric.reset()
    assert metric.per_class == {}


@every_metric
def test_forward_returns_the_batch_and_accumulates_like_update(make):
    metric, parts = make(), [slice(0, 10), slice(10, 11), slice(11, 40)]
    for rows in parts:
        value = plain(metric(**inputs_of(metric, rows)))
        expected = plain(updated(make(), rows).compute())
        assert value.keys() == expected.keys()
        for name in expected:
            assert value[name] == pytest.approx(expected[name], rel=1e-12)
    assert_same(metric, updated(make()))


@every_metric
def test_state_dict_brings_a_persistent_state_back(make):
    saved, loaded = updated(make(), slice(0, 25)), make()
    for metric in (saved, loaded):
        assert metric.state_dict() == {}
        metric.persistent(mode=True)
    loaded.load_state_dict(pickle.loads(pickle.dumps(saved.state_dict())))  # noqa: S301
    assert_same(updated(loaded, slice(25, 40)), updated(make()))


@every_metric
@pytest.mark.parametrize("order", list(permutations(MODES)))
def test_updates_in_any_gradient_mode_after_a_reset_in_inference_mode(order, make):
    metric = updated(make())
    with torch.inference_mode():
        metric.reset()
    for mode, rows in zip(order, (slice(0, 10), slice(10, 20), slice(20, 40)), strict=True):
        with MODES[mode]():
            updated(metric, rows).compute()
    assert_same(metric, updated(make()))


@every_metric
@pytest.mark.parametrize("change", [torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.float])
def test_casting_the_module_it_belongs_to_changes_nothing(change, make):
    assert_same(updated(change(updated(make(), slice(0, 10))), slice(10, 40)), updated(make()))


@every_metric
@pytest.mark.parametrize("when", ["before", "between"])
def test_set_dtype_computes_in_single_precision(when, make):
    metric = updated(make(), slice(0, 20)) if when == "between" else make()
    metric.set_dtype(torch.float32)
    updated(metric, *([] if when == "before" else [slice(20, 40)]))
    result, expected = plain(metric.compute()), plain(updated(make()).compute())
    for name in expected:
        assert result[name] == pytest.approx(expected[name], rel=1e-6)


def test_nothing_of_a_training_graph_is_kept():
    metric = MAKE["AttackSuccessRate"]()
    inputs = inputs_of(metric, slice(None))
    for name in ("clean_loss", "adv_loss"):
        inputs[name].requires_grad_()
    metric(**inputs)
    assert not any(state.requires_grad for state in metric.metric_state.values())
    assert_same(metric, updated(MAKE["AttackSuccessRate"]()))


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


@every_metric
def test_plot_shows_one_value(make):
    figure, axes = updated(make()).plot()
    assert axes.figure is figure
    assert axes.lines


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


@every_metric
def test_class_attributes(make):
    metric = make()
    assert metric.is_differentiable is False
    assert metric.higher_is_better is not isinstance(metric, AttackSuccessRate)
    assert metric.full_state_update is False
    assert (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)
