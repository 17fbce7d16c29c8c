"""What torchmetrics promises of every metric, and checks of its own."""

import pickle
from copy import deepcopy
from itertools import permutations

import pytest
import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import MetricTracker, Running

from lightning_flatness import metrics
from tests.metrics.cases import CASES, computed_attributes, floats, named, states

PARTS = (slice(0, 10), slice(10, 11), slice(11, 40))
SUMS = [case for case in CASES if case.name != "HeadTopEigenvalue"]
every_metric = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES], indirect=True)
every_sum = pytest.mark.parametrize("case", SUMS, ids=[case.name for case in SUMS], indirect=True)
CONSTANTS = {  # is_differentiable, higher_is_better, full_state_update, plot_lower_bound, plot_upper_bound
    "AttackSuccessRate": (False, False, False, 0, 1),
    "AttackTrajectory": (False, None, False, 0, None),
    "ConfidenceFlatness": (False, None, False, -1, 1),
    "HeadScaling": (False, None, False, None, None),
    "HeadTopEigenvalue": (False, False, True, 0, None),
    "LocalRobustnessBound": (False, True, False, 0, 1),
    "LossBoundCheck": (False, False, False, 0, 1),
    "RelativeFlatness": (False, False, False, 0, None),
    "RobustAccuracy": (False, True, False, 0, 1),
    "RobustAccuracyCurve": (False, True, False, 0, 1),
}
ATTRIBUTES = ("is_differentiable", "higher_is_better", "full_state_update", "plot_lower_bound", "plot_upper_bound")


@pytest.fixture
def case(request, device):
    return request.param._replace(device=device)


def assert_same(metric, other, rel=1e-12):
    assert_equal(metric.compute(), other.compute(), rel)


def assert_equal(value, expected, rel=1e-12):
    torch.testing.assert_close(value, expected, rtol=rel, atol=0, check_dtype=False)


def test_every_public_metric_has_a_case():
    public = {name for name, value in vars(metrics).items() if isinstance(value, type) and issubclass(value, Metric)}
    assert sorted(case.name for case in CASES) == sorted(CONSTANTS) == sorted(public)


@every_metric
@pytest.mark.parametrize(
    "copy",
    [lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric.clone(), deepcopy],  # noqa: S301
)
def test_a_copy_goes_on_by_itself(copy, case):
    metric = case.updated(PARTS[0])
    metric.compute()
    duplicate = copy(metric)
    assert type(duplicate) is type(metric)
    assert computed_attributes(duplicate).keys() == computed_attributes(metric).keys()
    case.updated(*PARTS[1:], metric=duplicate)
    assert_same(duplicate, case.updated())
    assert_same(metric, case.updated(PARTS[0]))


@every_metric
def test_reset_goes_back_to_the_beginning(case):
    metric = case.updated()
    metric.compute()
    assert all(computed_attributes(metric).values())
    metric.reset()
    assert not metric.update_called
    for state, default in zip(states(metric), states(case.new()), strict=True):
        assert torch.equal(state, default)
    assert computed_attributes(metric) == computed_attributes(case.new())
    assert_same(case.updated(slice(5, 15), metric=metric), case.updated(slice(5, 15)))


@every_metric
def test_compute_can_be_called_between_updates(case):
    metric = case.new()
    for rows in PARTS:
        case.updated(rows, metric=metric).compute()
    assert_same(metric, case.updated())


@every_metric
def test_forward_returns_the_batch_and_accumulates_like_update(case):
    metric = case.new()
    for rows in PARTS:
        assert_equal(metric(**case.inputs(rows)), case.updated(rows).compute())
    assert metric.update_count == len(PARTS)
    assert_same(metric, case.updated())


@every_sum
def test_nothing_depends_on_how_forward_goes(case):
    """What ``full_state_update=False`` promises: adding two states is as good as updating one."""
    metric = case.new()
    slow = type("Slow", (type(metric),), {"full_state_update": True})(**case.settings)
    for rows in PARTS:
        assert_equal(metric(**case.inputs(rows)), slow(**case.inputs(rows)))
    assert_same(metric, slow)


@every_metric
def test_class_attributes_are_constant(case):
    metric = case.new()
    assert tuple(getattr(type(metric), name) for name in ATTRIBUTES) == CONSTANTS[case.name]
    for name in ATTRIBUTES:
        with pytest.raises(RuntimeError, match=f"Can't change const `{name}`"):
            setattr(metric, name, True)


@every_metric
@pytest.mark.parametrize("method", ["update", "forward"])
def test_nothing_of_a_training_graph_is_kept(method, case):
    metric, inputs = case.new(), case.inputs(slice(None))
    for tensor in floats(inputs):
        tensor.requires_grad_()
    value = getattr(metric, method)(**inputs)
    returned = named(value).values() if method == "forward" else []
    assert not any(tensor.requires_grad for tensor in (*returned, *states(metric)))
    assert_same(metric, case.updated())


@every_metric
def test_updates_in_any_gradient_mode_after_a_reset_in_inference_mode(case):
    metric = case.updated()
    for modes in permutations((torch.inference_mode, torch.no_grad, torch.enable_grad)):
        with torch.inference_mode():
            metric.reset()
        for mode, rows in zip(modes, PARTS, strict=True):
            with mode():
                case.updated(rows, metric=metric).compute()
        assert_same(metric, case.updated())


@every_metric
def test_state_dict_brings_a_persistent_state_back(case):
    saved, loaded = case.updated(*PARTS[:2]), case.new()
    for metric in (saved, loaded):
        assert metric.state_dict() == {}
        metric.persistent(mode=True)
    loaded.load_state_dict(pickle.loads(pickle.dumps(saved.state_dict())))  # noqa: S301
    assert_same(case.updated(PARTS[2], metric=loaded), case.updated())


@every_metric
def test_hash_tells_equal_metrics_apart(case):
    metric = case.updated()
    assert hash(metric) == hash(metric)
    assert hash(metric) != hash(metric.clone())


@every_metric
@pytest.mark.parametrize("change", [torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.float])
def test_casting_the_module_it_belongs_to_changes_nothing(change, case):
    owner = torch.nn.ModuleDict({"metric": case.updated(PARTS[0])})
    before = [state.dtype for state in states(owner["metric"])]
    change(owner)
    assert [state.dtype for state in states(owner["metric"])] == before
    assert_same(case.updated(*PARTS[1:], metric=owner["metric"]), case.updated())


@every_metric
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("when", ["before", "between"])
def test_set_dtype_sets_the_precision_of_the_states(when, dtype, case):
    metric = case.updated(PARTS[0]) if when == "between" else case.new()
    metric.set_dtype(dtype)
    case.updated(*(PARTS if when == "before" else PARTS[1:]), metric=metric)
    # The eigenvalue is iterated until it is within 1e-4.
    assert_same(metric, case.updated(), rel=2e-4 if case.name == "HeadTopEigenvalue" else 1e-6)


@every_metric
def test_states_move_with_the_module_they_belong_to(case):
    metric = case.updated(PARTS[0])
    torch.nn.ModuleDict({"metric": metric}).to("meta")
    assert metric.device.type == "meta"
    assert {state.device.type for state in states(metric)} == {"meta"}
    metric.reset()
    assert {state.device.type for state in states(metric)} <= {"meta"}


@every_metric
def test_every_device_finds_what_the_cpu_does(case, device):
    if device.type == "cpu":
        pytest.skip("--device names no other one")
    metric = case.updated(*PARTS)
    metric.compute()
    assert {tensor.device.type for tensor in named(metric.compute()).values()} == {device.type}
    expected = case._replace(device=torch.device("cpu")).updated()
    torch.testing.assert_close(metric.cpu().compute(), expected.compute(), rtol=2e-4, atol=0)


@every_metric
def test_compute_before_update_warns(case):
    with pytest.warns(UserWarning, match=f"``compute`` method of metric {case.name} was called before the ``update``"):
        case.new().compute()


@every_metric
def test_keywords_go_to_torchmetrics(case):
    assert case.new(sync_on_compute=False).sync_on_compute is False
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `no_such`"):
        case.new(no_such=1)


@every_sum
@pytest.mark.parametrize("incoming", [lambda metric: metric, lambda metric: metric.metric_state])
def test_merge_state_adds_what_another_has_seen(incoming, case):
    metric = case.updated(PARTS[0])
    metric.merge_state(incoming(case.updated(*PARTS[1:])))
    assert_same(metric, case.updated())


@every_metric
@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_names_and_copies_its_metrics(compute_groups, case):
    collection = MetricCollection(
        {"one": case.new(), "other": case.new()}, prefix="val/", postfix="_end", compute_groups=compute_groups
    )
    for rows in PARTS:
        collection.update(**case.inputs(rows), no_argument=0)
    expected = named(case.updated().compute())
    copied = collection.clone(prefix="test/")
    assert collection.compute().keys() == {
        f"val/{'_'.join(filter(None, (metric, name)))}_end" for metric in ("one", "other") for name in expected
    }
    assert len(collection.compute_groups) == (1 if compute_groups else 0)
    assert all(name.startswith("test/") for name in copied.compute())
    for metric in (*collection.values(), *copied.values()):
        assert_same(metric, case.updated())
    collection.reset()
    assert not any(metric.update_called for metric in collection.values())


@every_metric
def test_arithmetic_with_one_value(case):
    """An entry is a metric by itself, and can be reckoned with."""
    name, expected = next(iter(named(case.updated().compute()).items()))
    metric = case.new()
    composed = 1 + 2 * (metric[name] if name else metric)
    for rows in PARTS:
        composed.update(**case.inputs(rows))
    assert_equal(composed.compute(), 1 + 2 * expected)
    composed.reset()
    assert not metric.update_called


@every_metric
def test_tracker_keeps_the_epochs_apart(case):
    tracker = MetricTracker(case.new(), maximize=bool(CONSTANTS[case.name][1]))
    for _ in range(2):
        tracker.increment()
        tracker.update(**case.inputs(slice(None)))
    once = named(case.updated().compute())
    assert_equal(named(tracker.compute_all()), {name: torch.stack([value, value]) for name, value in once.items()})


@every_sum
def test_running_window_sees_the_last_batches(case):
    running = Running(case.new(), window=2)
    for rows in PARTS:
        running.update(**case.inputs(rows))
    assert_same(running, case.updated(*PARTS[1:]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated", "ignore:This property will be removed in 2.0.0")
def test_a_module_that_holds_them_can_be_scripted():
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.metrics = torch.nn.ModuleDict({case.name: case.new() for case in CASES})

        def forward(self, x):
            return 2 * x

    assert torch.jit.script(Owner())(torch.tensor(1.0)) == 2


@every_metric
def test_plot(case):
    from matplotlib.figure import Figure  # noqa: PLC0415

    metric = case.updated()
    figure, axes = metric.plot()
    assert axes.figure is figure
    assert axes.lines
    given = Figure().subplots()
    results = [case.updated(*PARTS[: stop + 1]).compute() for stop in range(3)]
    assert metric.plot(results, ax=given)[1] is given
    assert given.lines
