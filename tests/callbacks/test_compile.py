"""``torch.compile`` around the module or inside it."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from collections.abc import Callable, Iterator
from shutil import which
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness import RelativeFlatnessMonitor
from tests.callbacks.conftest import CLASSES, DIM, HIDDEN, StepNet, by_hand, curve, loader, samples, trainer

KEY = "flatness/relative_flatness"


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Silent(StepNet):
    """Logs nothing in its steps, so that a graph of a whole step has no break."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Plain(Silent):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


class Inner(Silent):
    """The network is a compiled part of the module."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(head=nn.Identity())
        self.net = torch.compile(nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)), **kwargs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def _by_hand(features: Tensor, layer: nn.Linear) -> float:
    with torch.no_grad():
        return by_hand([(features, layer.weight, layer(features), samples(20, seed=1).tensors[1])])[KEY]


INPUTS = samples(20, seed=1).tensors[0]


def _check(net: StepNet, compiled: Any, monitor: RelativeFlatnessMonitor, value: Callable[[], float]) -> None:
    """Every stage gives the value of the weights at its end."""
    runner = trainer(monitor, max_epochs=2)
    runner.fit(compiled, loader(), loader(20, seed=1))
    assert len(curve(monitor)) == 2
    assert curve(monitor)[1] == pytest.approx(value(), rel=1e-5)
    for _ in range(2):
        runner.validate(compiled, loader(20, seed=1), verbose=False)
        assert monitor.history()[-1][KEY] == pytest.approx(value(), rel=1e-5)
    assert not any(part._forward_hooks for part in net.modules())


@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_whole_module_compiled(fullgraph: bool, head: str | None) -> None:  # noqa: FBT001 - pytest's
    net, monitor = Plain(), RelativeFlatnessMonitor(head=head)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=fullgraph)
    _check(net, compiled, monitor, lambda: _by_hand(net.body(INPUTS).detach(), net.head))
    assert monitor.head_name == "head"


@pytest.mark.parametrize("head", [None, "net.2"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_inner_network_compiled(fullgraph: bool, head: str | None) -> None:  # noqa: FBT001 - pytest's
    net, monitor = Inner(backend="aot_eager", fullgraph=fullgraph), RelativeFlatnessMonitor(head=head)
    _check(net, net, monitor, lambda: _by_hand(net.net._orig_mod[:2](INPUTS).detach(), net.net._orig_mod[2]))
    assert monitor.head_name.removeprefix("net.").endswith("2")


def test_module_compiled_in_place() -> None:
    net, monitor = Plain(), RelativeFlatnessMonitor()
    net.compile(backend="aot_eager")
    _check(net, net, monitor, lambda: _by_hand(net.body(INPUTS).detach(), net.head))


@pytest.mark.parametrize("head", [None, "head"])
def test_another_monitor_of_a_compiled_module_is_right_or_says_why_not(head: str | None) -> None:
    net = Plain()
    compiled = torch.compile(net, backend="aot_eager")
    value = None
    for _ in range(2):
        monitor = RelativeFlatnessMonitor(head=head)
        runner = trainer(monitor)
        try:
            runner.validate(compiled, loader(20, seed=1), verbose=False)
        except RuntimeError as error:
            assert "compiled and called before the callback saw it" in str(error)  # noqa: PT017 - one of two outcomes
        else:
            value = curve(monitor)[0]
            assert value == pytest.approx(_by_hand(net.body(INPUTS).detach(), net.head), rel=1e-5)
    assert value is not None


def test_module_runs_compiled_and_no_graph_is_made_twice() -> None:
    def graphs(*monitors: RelativeFlatnessMonitor) -> int:
        torch.compiler.reset()
        made = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            made.append(graph)
            return graph.forward

        net = Plain()
        runner = trainer(*monitors, max_epochs=3)
        runner.fit(torch.compile(net, backend=backend), loader(), loader(24, seed=1))
        return len(made)

    # One more where the head is still looked for, one more where it is known.
    assert graphs(RelativeFlatnessMonitor(head="head")) <= graphs() + 1
    assert graphs(RelativeFlatnessMonitor()) <= graphs() + 2


@pytest.mark.slow
@pytest.mark.skipif(not (which("cc") or which("gcc") or which("clang")), reason="inductor needs a C compiler")
@pytest.mark.filterwarnings("ignore")  # of inductor, which differ from machine to machine
def test_inductor() -> None:
    net, monitor = Plain(), RelativeFlatnessMonitor()
    trainer(monitor).validate(torch.compile(net), loader(20, seed=1), verbose=False)
    assert curve(monitor) == [pytest.approx(_by_hand(net.body(INPUTS).detach(), net.head), rel=1e-5)]
