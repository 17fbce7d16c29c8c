"""Which layer is measured, and what its calls and the batches may look like."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.callbacks._returned import doubt
from lightning_flatness.functional import relative_flatness
from lightning_flatness.functional.losses import CrossEntropy
from tests.callbacks.conftest import (
    CLASSES,
    DIM,
    HIDDEN,
    Net,
    StepNet,
    approx,
    by_hand,
    curve,
    fit,
    flatness_of,
    loader,
    rows,
    samples,
    trainer,
    validate,
)

KEY = "flatness/relative_flatness"


class Deep(Net):
    """Several linear layers, of which ``head`` is not the one defined last."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()))
        self.unused = nn.Linear(HIDDEN, 7)


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    "choose",
    [lambda _: None, lambda _: "head", lambda net: net.head],
    ids=["found", "named", "object"],
)
def test_head_is_found_named_or_given(choose: Callable[[Net], Any], stage: str) -> None:
    net = Deep()
    monitor = RelativeFlatnessMonitor(head=choose(net))
    if stage == "fit":
        fit(net, monitor, num_sanity_val_steps=0)
    else:
        validate(net, monitor)
    assert monitor.head_name == "head"
    assert flatness_of(monitor.history()[0]) == approx(by_hand(net.seen))


@pytest.mark.parametrize("name", ["head.1", None])
def test_head_may_be_inside_a_sequential(name: str | None) -> None:
    net = Net(head=nn.Sequential(nn.Identity(), nn.Linear(HIDDEN, CLASSES)))
    monitor = RelativeFlatnessMonitor(head=name)
    validate(net, monitor)
    weight = net.head[1].weight.detach()
    seen = [(features, weight, logits, target) for features, _, logits, target in net.seen]
    assert monitor.head_name == "head.1"
    assert flatness_of(monitor.history()[0]) == approx(by_hand(seen))


def test_another_layer_can_be_measured() -> None:
    net = Deep()
    logged = validate(net, RelativeFlatnessMonitor(head="body.2", inputs_and_targets=_no_targets))
    layer, inputs = net.body[2], samples(20, seed=1).tensors[0]
    with torch.no_grad():
        features = net.body[:2](inputs)
        expected = relative_flatness(features, layer.weight, layer(features)).mean()
    assert logged[KEY] == pytest.approx(float(expected), rel=1e-5)


def _no_targets(batch: Any) -> tuple[Any, None]:
    return batch[0], None


def test_head_may_be_parametrised() -> None:
    net, monitor = Net(head=weight_norm(nn.Linear(HIDDEN, CLASSES))), RelativeFlatnessMonitor()
    fit(net, monitor, num_sanity_val_steps=0)
    validate(net, monitor)
    for row, seen in zip(monitor.history(), (net.seen[:3], net.seen[3:]), strict=True):
        assert flatness_of(row) == approx(by_hand(seen))


class Keyword(StepNet):
    def evaluate(self, batch: Any) -> Any:
        return self.head(input=self.body(batch[0]))


class Chunks(StepNet):
    """Calls the head on one half of the batch after the other."""

    def evaluate(self, batch: Any) -> Any:
        return torch.cat([self.head(part) for part in self.body(batch[0]).chunk(2)])


class ChunksOfAll(StepNet):
    """Calls the whole network on one half of the batch after the other."""

    def evaluate(self, batch: Any) -> Any:
        return torch.cat([self(part) for part in batch[0].chunk(2)])


class Views(StepNet):
    """Classifies every input and its mirror image."""

    def evaluate(self, batch: Any) -> Any:
        features = self.body(batch[0]), self.body(-batch[0])
        return sum(self.head(part) for part in features)


class ViewsOfAll(StepNet):
    """Calls the whole network on every input, then on its mirror image."""

    def evaluate(self, batch: Any) -> Any:
        return sum(self(sign * batch[0]) for sign in (1, -1))


def _whole(net: Net, signs: tuple[int, ...]) -> dict[str, float]:
    """What the monitor should have logged if the head had been called once, on everything."""
    inputs, target = samples(20, seed=1).tensors
    inputs, target = torch.cat([sign * inputs for sign in signs]), target.repeat(len(signs))
    with torch.no_grad():
        features = net.body(inputs)
        return by_hand([(features, net.head.weight, net.head(features), target)])


@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize("stages", [["fit"], ["validate"], ["fit", "validate"]], ids="+".join)
@pytest.mark.parametrize(
    ("kind", "signs"),
    [(Keyword, (1,)), (Chunks, (1,)), (ChunksOfAll, (1,)), (Views, (1, -1)), (ViewsOfAll, (1, -1))],
)
def test_calls_of_one_step_are_put_together(
    kind: type[StepNet], signs: tuple[int, ...], stages: list[str], head: str | None
) -> None:
    net, monitor = kind(), RelativeFlatnessMonitor(head=head, top_eigenvalue_samples=0)
    runner = trainer(monitor, num_sanity_val_steps=0)
    if "fit" in stages:
        runner.fit(net, loader(), loader(20, seed=1))
    if "validate" in stages:
        runner.validate(net, loader(20, seed=1), verbose=False)
    expected = _whole(net, signs)
    del expected["flatness/top_eigenvalue"]
    for row in monitor.history():
        assert flatness_of(row) == pytest.approx(expected, rel=1e-5)


class LanguageModel(LightningModule):
    """Embedding tied to the head; batches are dictionaries of token indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embedding(tokens)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch["input_ids"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_tied_language_model_skips_the_ignored_tokens() -> None:
    tokens = torch.randint(11, (10, 5))
    labels = tokens.roll(-1, 1)
    labels[:, -1] = -100
    labels[3] = -100
    data = rows([{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)], 4)
    net, monitor = LanguageModel(), RelativeFlatnessMonitor()
    fit(net, monitor, train=data, val=data)
    logged = validate(net, monitor, val=data)
    with torch.no_grad():
        features = net.mix(net.embedding(tokens))
        kept = labels != -100
        seen = [(features[kept], net.head.weight, net.head(features)[kept], labels[kept])]
    expected = by_hand(seen)
    assert monitor.head_name == "head"
    assert flatness_of(logged) == pytest.approx(expected, rel=1e-4)


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


def _as_dict(names: tuple[str, str]) -> Callable[[Tensor, Tensor], Any]:
    return lambda image, label: {names[0]: image, names[1]: label, "index": 0}


@pytest.mark.parametrize(
    "form",
    [
        lambda image, label: (image, label),
        lambda image, label: [image, label],
        lambda image, label: (image, label, "path"),
        Pair,
        _as_dict(("image", "label")),
        _as_dict(("x", "y")),
        _as_dict(("pixel_values", "labels")),
        _as_dict(("inputs", "targets")),
    ],
    ids=["tuple", "list", "triple", "namedtuple", "image", "x", "pixel_values", "inputs"],
)
def test_usual_batches_are_understood(form: Callable[[Tensor, Tensor], Any]) -> None:
    class Forms(StepNet):
        def evaluate(self, batch: Any) -> Any:
            return self(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])

    data = samples(20, seed=1)
    logged = validate(Forms(), RelativeFlatnessMonitor(), val=rows([form(*data[index]) for index in range(20)]))
    assert {"flatness/correct", "flatness/wrong"} <= set(logged)


def test_targets_can_be_picked_by_a_function() -> None:
    net = Net()
    validate(net, plain := RelativeFlatnessMonitor())

    class Swapped(StepNet):
        def evaluate(self, batch: Any) -> Any:
            return self(batch["b"]["pixels"])

    swapped = Swapped()
    swapped.load_state_dict(net.state_dict())
    data = [{"a": label, "b": {"pixels": image}} for image, label in samples(20, seed=1)]
    picked = RelativeFlatnessMonitor(inputs_and_targets=lambda batch: (batch["b"]["pixels"], batch["a"]))
    validate(swapped, picked, val=rows(data))
    assert flatness_of(picked.history()[0]) == pytest.approx(flatness_of(plain.history()[0]), rel=1e-12)


class TwoHeads(StepNet):
    """Two heads on the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(HIDDEN, 5)

    def evaluate(self, batch: Any) -> Any:
        features = self.body(batch[0])
        return self.head(features), self.other(features)


@pytest.mark.parametrize("name", ["head", "other"])
def test_one_of_two_heads_can_be_named(name: str) -> None:
    net = TwoHeads()
    logged = validate(net, RelativeFlatnessMonitor(head=name, inputs_and_targets=_no_targets))
    layer, inputs = getattr(net, name), samples(20, seed=1).tensors[0]
    with torch.no_grad():
        features = net.body(inputs)
        expected = relative_flatness(features, layer.weight, layer(features)).mean()
    assert logged[KEY] == pytest.approx(float(expected), rel=1e-5)


def test_two_monitors_measure_two_heads() -> None:
    monitors = [
        RelativeFlatnessMonitor(head=name, group=f"flatness_{name}", inputs_and_targets=_no_targets)
        for name in ("head", "other")
    ]
    logged = validate(TwoHeads(), *monitors)
    values = [logged[f"flatness_{name}/relative_flatness"] for name in ("head", "other")]
    assert values[0] != values[1]
    assert not flatness_of(logged)


def test_head_is_looked_for_again_in_another_module() -> None:
    class Other(StepNet):
        def __init__(self) -> None:
            super().__init__(head=nn.Identity())
            self.classifier = nn.Linear(HIDDEN, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.classifier(self.body(inputs))

    monitor = RelativeFlatnessMonitor()
    validate(Net(), monitor)
    validate(Other(), monitor)
    assert monitor.head_name == "classifier"


def test_head_made_late_is_found() -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__(head=nn.Identity())

        def configure_model(self) -> None:
            if not isinstance(self.head, nn.Linear):
                self.head = nn.Linear(HIDDEN, CLASSES)

    net, monitor = Late(), RelativeFlatnessMonitor(head="head")
    fit(net, monitor, num_sanity_val_steps=0)
    assert curve(monitor) == pytest.approx([by_hand(net.seen)[KEY]], rel=1e-9)


class Ending(Net):
    """Ends in something behind its head."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end = end

    def forward(self, inputs: Tensor) -> Tensor:
        return self.end(super().forward(inputs))


class Functional(Ending):
    """Makes its logits without calling a layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs)
        self.seen.append((features,))
        return features @ self.head.weight.T


@pytest.mark.parametrize(
    ("net", "settings", "said"),
    [
        (
            Ending(lambda z: z.softmax(1)),
            {},
            "^The head 'head' is followed by a softmax before the module's",
        ),
        (Ending(lambda z: z.softmax(1)), {"head": "head"}, "^The head 'head' is followed by a softmax before"),
        (
            Ending(lambda z: z / 5),
            {},
            "^The head 'head' makes other outputs than the module's forward returns: ",
        ),
        (
            Functional(torch.relu),
            {},
            r"^The head 'body.0' makes 8 outputs, but .* \(\d+, 3\): is it the last",
        ),
    ],
    ids=["softmax", "softmax of a named head", "temperature", "another layer"],
)
def test_module_that_returns_something_else_is_told_once(net: Net, settings: dict[str, Any], said: str) -> None:
    with pytest.warns(UserWarning, match=said) as caught:
        fit(net, RelativeFlatnessMonitor(**settings), max_epochs=2)
    assert sum(str(warning.message).startswith("The head") for warning in caught) == 1


@pytest.mark.parametrize(
    ("end", "settings"),
    [
        (lambda z: z.log_softmax(1), {}),
        (lambda z: z + 3, {}),
        (lambda z: torch.cat([z, z], 1), {"head": "head"}),
        (lambda z: z / 5, {"loss": CrossEntropy(temperature=5.0)}),
    ],
    ids=["log-softmax", "constant", "others too", "another loss"],
)
def test_module_that_returns_the_same_or_says_so_is_left_alone(
    end: Callable[[Tensor], Tensor], settings: dict[str, Any]
) -> None:
    net = Ending(end)
    validate(net, RelativeFlatnessMonitor(**settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 2e-3, 1.0])
def test_heads_of_many_classes_are_left_alone_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    logits = (scale * torch.randn(8, 1000)).to(dtype)
    assert doubt(logits, logits, is_guessed=True) is None
    assert doubt(logits, logits.float().log_softmax(1), is_guessed=True) is None
    assert "softmax" in str(doubt(logits, logits.float().softmax(1), is_guessed=False))


def test_only_leading_rows_are_compared() -> None:
    logits = torch.randn(10_000, 3)
    assert doubt(logits, torch.cat([logits[:64], 5 * logits[64:]]), is_guessed=True) is None
    assert doubt(logits[:0], logits[:0], is_guessed=True) is None


def test_several_forwards_of_the_same_inputs_are_not_compared() -> None:
    class Repeated(Ending):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            for _ in range(3):
                super().validation_step(batch, batch_idx)

    validate(Repeated(lambda z: z * torch.rand(())), RelativeFlatnessMonitor())
