"""Errors come early and say what to do; late ones cost a point of the curve at most."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.callbacks import flatness as flatness_module
from tests.callbacks.conftest import (
    CLASSES,
    HIDDEN,
    Net,
    StepNet,
    curve,
    epochs,
    fit,
    loader,
    rows,
    samples,
    trainer,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_epochs": 0}, r"`every_n_epochs` must be >= 1, got 0\."),
        ({"max_samples": 0}, r"`max_samples` must be an integer >= 1 or None, got 0\."),
        ({"on_error": "ignore"}, r"`on_error` must be 'raise' or 'warn', got 'ignore'\."),
        ({"top_eigenvalue_samples": -1}, r"`top_eigenvalue_samples` must be >= 0, got -1\."),
        ({"variant": "flat"}, r"`variant` must be one of neuronwise, layerwise, maxeig, got 'flat'\."),
        ({"loss": "hinge"}, r"`loss` must be one of cross_entropy, .*, got 'hinge'\."),
    ],
    ids=str,
)
def test_arguments_are_checked_at_once(settings: dict[str, Any], message: str, unchecked_shapes: Any) -> None:
    with unchecked_shapes, pytest.raises(ValueError, match=f"^{message}$"):
        RelativeFlatnessMonitor(**settings)


class HeadlessNet(StepNet):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)), nn.Bilinear(2, 2, CLASSES))


class BilinearNet(StepNet):
    def __init__(self) -> None:
        super().__init__(head=nn.Bilinear(HIDDEN, HIDDEN, CLASSES))

    def evaluate(self, batch: Any) -> Any:
        return self.head(self.body(batch[0]), self.body(batch[0]))


class InPlace(StepNet):
    """Changes what the head has returned."""

    def evaluate(self, batch: Any) -> Any:
        return self(batch[0]).div_(2)


class Dense(StepNet):
    """Averages the logits of many positions."""

    def evaluate(self, batch: Any) -> Any:
        return self.head(self.body(torch.stack([batch[0], -batch[0]], dim=1))).mean(1)


class TwoHeads(StepNet):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(HIDDEN, CLASSES)

    def evaluate(self, batch: Any) -> Any:
        features = self.body(batch[0])
        return self.head(features), self.other(features)


class Functional(StepNet):
    """Uses the weight of the head without calling it."""

    def evaluate(self, batch: Any) -> Any:
        return nn.functional.linear(self.body(batch[0]), self.head.weight)


class NoCall(StepNet):
    """Calls no linear layer at all."""

    def evaluate(self, batch: Any) -> Any:
        return batch


class Crops(StepNet):
    """Calls the head on three crops of unequal number."""

    def evaluate(self, batch: Any) -> Any:
        return [self(part) for part in (batch[0], batch[0][:3], batch[0][:1])]


class Doubled(StepNet):
    """Makes two rows of every sample before the head is called once."""

    def evaluate(self, batch: Any) -> Any:
        return self(batch[0].repeat(2, 1))


class Whole(StepNet):
    """Takes any batch and evaluates something else."""

    def evaluate(self, batch: Any) -> Any:
        return self(samples(4).tensors[0])


class Custom:
    def __init__(self, image: Tensor) -> None:
        self.image = image


def _custom(parts: Any) -> Custom:
    return Custom(torch.stack([part[0] for part in parts]))


def _dictionaries(*names: str) -> Any:
    return rows([dict.fromkeys(names, torch.zeros(4)) for _ in range(4)])


CASES: dict[str, tuple[Callable[[], StepNet], dict[str, Any], Any, str]] = {
    "no linear layer": (
        HeadlessNet,
        {},
        None,
        r"^`head` cannot be found: HeadlessNet has no nn\.Linear\. "
        r"Flatness is that of a head W x \+ b; pass `head=` the layer that is one, "
        r"e\.g\. a convolution with 1×1 kernels\.$",
    ),
    "head is not linear": (
        StepNet,
        {"head": "body"},
        None,
        r"^`head` must be an affine map of its input \(W x \+ b\), which 'body' \(Sequential\) is not; "
        r"pass `head=` the linear layer in it that makes the logits\.$",
    ),
    "head changes the positions": (
        lambda: StepNet(head=nn.Sequential(nn.Unflatten(1, (2, HIDDEN // 2)), nn.Linear(HIDDEN // 2, CLASSES))),
        {"head": "head"},
        None,
        r"^`head` 'head' \(Sequential\) makes \(8, 2, 3\) of \(8, 8\), but must map the features of each position to "
        r"its logits; pass `head=` the linear layer in it\.$",
    ),
    "head of two inputs": (
        BilinearNet,
        {"head": "head"},
        None,
        r"^`head` must map one tensor to another, but 'head' is a Bilinear that does not; "
        r"pass `head=` the linear layer that makes the logits\.$",
    ),
    "logits changed in place": (
        InPlace,
        {},
        None,
        r"^The inputs or outputs of the head 'head' were changed in place behind it; "
        r"write the change as a new tensor, e\.g\. `logits = logits / 2` instead of `logits /= 2`\.$",
    ),
    "logits of positions": (
        Dense,
        {},
        None,
        r"^The head 'head' makes logits at 2 positions of each sample, but there is one target for all of them; "
        r"average the features before the head instead of its outputs behind it, "
        r"e\.g\. `x\.mean\(\(2, 3\), keepdim=True\)`: the mean logits are the same\.$",
    ),
    "unknown name in a module without linear layers": (
        HeadlessNet,
        {"head": "classifier"},
        None,
        r"^`head` 'classifier' is not a part of HeadlessNet; the module has no nn\.Linear\.$",
    ),
    "unknown name": (
        StepNet,
        {"head": "classifier.fc"},
        None,
        r"^`head` 'classifier\.fc' is not a part of StepNet; pass `head=` one of 'body\.0', 'head'\.$",
    ),
    "foreign module": (
        StepNet,
        {"head": nn.Linear(2, 2)},
        None,
        r"^`head` is not a part of StepNet; pass `head=` one of 'body\.0', 'head'\.$",
    ),
    "two heads": (
        TwoHeads,
        {},
        None,
        r"^`head` is ambiguous: 'head', 'other' were given the same features; pass `head=` one of them\.$",
    ),
    "head never called": (
        Functional,
        {"head": "head"},
        None,
        r"^The head 'head' was not called in this step; pass `head=` the layer that makes the logits\. ",
    ),
    "nothing called": (NoCall, {}, None, r"was not called in this step; pass `head=` the layer that makes the logits"),
    "keys unknown": (
        Whole,
        {},
        lambda: _dictionaries("pixels", "label"),
        r"^The batch has the keys 'pixels', 'label'; "
        r"pass `inputs_and_targets=` a function that picks the inputs and the targets\.$",
    ),
    "batch unknown": (
        Whole,
        {},
        lambda: torch.utils.data.DataLoader(samples(8), 8, collate_fn=_custom),
        r"^The batch is a Custom; pass `inputs_and_targets=` a function that maps it to a pair\.$",
    ),
    "batch of one part": (
        Whole,
        {},
        lambda: rows(torch.utils.data.TensorDataset(torch.zeros(8, 4))),
        r"^The batch is a list; pass `inputs_and_targets=` a function that maps it to a pair\.$",
    ),
    "targets are no tensor": (
        StepNet,
        {"inputs_and_targets": lambda batch: (batch[0], {"label": batch[1]})},
        None,
        r"^The targets must be a tensor or None, got dict; pass `inputs_and_targets=` a function that picks them\.$",
    ),
    "rows of several calls": (
        Crops,
        {"head": "head"},
        None,
        r"^The head was called 3 times, with \[8, 3, 1\] rows for 8 targets; "
        r"pass `inputs_and_targets=` a function that gives one target per row\.$",
    ),
    "rows of one call": (
        Doubled,
        {},
        None,
        r"^`target` must have shape \(16,\) or \(16, 3\), got \(8,\)\.",
    ),
    "numbers to regress on": (
        StepNet,
        {"inputs_and_targets": lambda batch: (batch[0], batch[1].float())},
        None,
        r"^`target` must have the shape of `logits`, \(8, 3\), got \(8,\)\. "
        r"Floats are probabilities of the classes; pass the loss of a regression, e\.g\. 'mse'\.$",
    ),
    "targets out of range": (
        StepNet,
        {"inputs_and_targets": lambda batch: (batch[0], batch[1] + 2)},
        None,
        r"^`target` must hold classes of the head, but \d+ targets are out of range; "
        r"pass loss=CrossEntropy\(ignore_index=\.\.\.\) if they mark samples to skip\.$",
    ),
    "dataloader unknown": (StepNet, {"dataloaders": [1]}, None, r"^`dataloaders` must be in \[0, 1\), got \[1\]\.$"),
    "dataloader negative": (StepNet, {"dataloaders": [-1]}, None, r"^`dataloaders` must be in \[0, 1\), got \[-1\]\.$"),
}


@pytest.mark.parametrize("on_error", ["raise", "warn"])
@pytest.mark.parametrize("case", CASES)
def test_errors_come_before_the_first_training_step(case: str, on_error: Any, unchecked_shapes: Any) -> None:
    make, settings, data, message = CASES[case]
    net = make()
    net.training_step = lambda *_: pytest.fail("training began")  # type: ignore[method-assign]
    monitor = RelativeFlatnessMonitor(on_error=on_error, **settings)
    with unchecked_shapes, pytest.raises((ValueError, RuntimeError), match=message):
        fit(net, monitor, val=None if data is None else data())


# Lightning says so, too.
@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.parametrize("sanity_batches", [0, 2])
def test_empty_validation_is_an_error_before_training(sanity_batches: int) -> None:
    net = Net()
    message = r"^The validation dataloader is empty; RelativeFlatnessMonitor has nothing to measure\.$"
    with pytest.raises(ValueError, match=message):
        fit(net, RelativeFlatnessMonitor(), val=loader(0), num_sanity_val_steps=sanity_batches)
    assert net.training_steps == 0


@pytest.mark.parametrize("variant", ["neuronwise", "maxeig"])
def test_two_monitors_of_one_group_are_refused(variant: Any) -> None:
    monitors = [RelativeFlatnessMonitor(), RelativeFlatnessMonitor(variant)]
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `RelativeFlatnessMonitor`"):
        fit(Net(), *monitors)


def _fails_in(epoch: int, net: Net, monkeypatch: pytest.MonkeyPatch, method: str = "update") -> None:
    """Let one call of the metric fail while ``net`` is in ``epoch``."""
    original = getattr(flatness_module.RelativeFlatness, method)
    failed = []

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        if net.current_epoch == epoch and not net.trainer.sanity_checking and not failed:
            failed.append(True)
            raise RuntimeError("out of memory")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(flatness_module.RelativeFlatness, method, fail)


@pytest.mark.parametrize("method", ["update", "compute"])
def test_late_error_costs_one_point_where_asked_for(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(on_error="warn")
    _fails_in(1, net, monkeypatch, method)
    message = r"^RelativeFlatnessMonitor failed in epoch 1 and leaves out that point: RuntimeError: out of memory \("
    with pytest.warns(UserWarning, match=message) as caught:
        fit(net, monitor, max_epochs=4)
    assert sum("leaves out that point" in str(warning.message) for warning in caught) == 1
    assert net.training_steps == 12
    assert epochs(monitor) == [0, 2, 3]


def test_late_values_are_what_they_are_without_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows_of(*, failing: bool) -> list[float]:
        torch.manual_seed(0)
        net, monitor = Net(), RelativeFlatnessMonitor(on_error="warn")
        with monkeypatch.context() as patch:
            if failing:
                _fails_in(1, net, patch)
            fit(net, monitor, max_epochs=3)
        return curve(monitor)

    whole = rows_of(failing=False)
    with pytest.warns(UserWarning, match="leaves out that point"):
        assert rows_of(failing=True) == [whole[0], whole[2]]


def test_errors_of_several_epochs_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(on_error="warn")

    def fail(*_: Any) -> None:
        if not net.trainer.sanity_checking:
            raise RuntimeError("broken")

    monkeypatch.setattr(flatness_module.RelativeFlatness, "update", fail)
    with pytest.warns(UserWarning, match="RuntimeError: broken") as caught:
        fit(net, monitor, max_epochs=3)
    assert sum("broken" in str(warning.message) for warning in caught) == 1
    assert monitor.history() == []
    assert net.training_steps == 9


def test_late_error_is_raised_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    _fails_in(1, net, monkeypatch)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        fit(net, monitor, max_epochs=3)
    assert epochs(monitor) == [0]
    assert net.training_steps == 6


def test_errors_of_the_module_are_its_own() -> None:
    class Broken(StepNet):
        def evaluate(self, batch: Any) -> Any:
            super().evaluate(batch)
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        trainer(RelativeFlatnessMonitor(on_error="warn")).validate(Broken(), loader(), verbose=False)
