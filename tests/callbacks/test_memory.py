"""Where memory does not suffice, monitors go on in parts, or leave out a point; they never end a training."""

import gc
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import AttackResult, ThreatModel, pgd
from lightning_flatness.callbacks._memory import Memory, free_memory_of, is_out_of_memory
from lightning_flatness.callbacks._monitor import Monitor
from tests.callbacks.conftest import Net, Spy, epochs, fit, loader
from tests.processes import finished, run_module, start

pytestmark = pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy")

BALL: dict[str, Any] = {"epsilon": 0.3, "lower": -5.0, "upper": 5.0}
IN_PARTS = r"^{} ran out of memory, and now runs the module on {} samples at a time: the values are the same up to "
SKIPPED = (
    r"^{} failed in epoch {} and leaves out that point: .*can't allocate memory.*; pass a smaller `max_samples`, or "
    r"make the validation batches smaller \(said once; later points may be missing too\)$"
)
FEW: dict[str, Any] = {"val": loader(16, seed=1, batch_size=16)}
MONITORS: dict[str, Callable[[], list[Monitor]]] = {
    "attack": lambda: [AttackMonitor(**BALL, epsilons=[0.1, 0.2], masking_samples=5)],
    "torchattacks": lambda: [AttackMonitor(**BALL, budget=None, attacks={"PGD": {"steps": 3}}, masking=False)],
    "trajectory": lambda: [AttackTrajectoryMonitor(**BALL, steps=4, path=["attack", "noise"])],
    "scaling": lambda: [HeadScalingMonitor(**BALL, scales=(0.5, 10.0), steps=3)],
    "estimated": lambda: [LocalRobustnessMonitor(**BALL), AttackMonitor(**BALL, masking=False)],
    "certified": lambda: [LocalRobustnessMonitor(**BALL, lipschitz="certified"), AttackMonitor(**BALL, masking=False)],
}


def too_much() -> Tensor:
    """More than any machine has."""
    return torch.empty(2**62, dtype=torch.uint8)


class _HungryBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, most: int) -> Tensor:
        ctx.is_too_much = len(inputs) > most
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (too_much() if ctx.is_too_much else gradient), None


class Hungry(Net):
    """Needs more memory than there is for more than ``most`` samples, but in its own steps."""

    def __init__(self, most: int, *, in_backward: bool = False) -> None:
        super().__init__()
        self.most, self.in_backward = most, in_backward
        self.is_own_step = False
        self.refused = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.is_own_step:
            return super().forward(inputs)
        if self.in_backward:
            inputs = _HungryBackward.apply(inputs, self.most)  # type: ignore[no-untyped-call]
        elif len(inputs) > self.most:
            self.refused += 1
            too_much()
        return self.head(self.body(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.is_own_step = True
        loss = super().training_step(batch, batch_idx)
        self.is_own_step = False
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.is_own_step = True
        super().validation_step(batch, batch_idx, dataloader_idx)
        self.is_own_step = False


def measured(net: Net, monitors: list[Monitor], **settings: Any) -> list[dict[str, float]]:
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    fit(net, *monitors, **settings)
    return [
        {name: value for name, value in row.items() if name != "stage" and not name.endswith("_seconds")}
        for monitor in monitors
        for row in monitor.history()
    ]


@pytest.mark.parametrize(
    ("kind", "in_backward"),
    [*((kind, False) for kind in MONITORS), *((kind, True) for kind in ("attack", "torchattacks", "estimated"))],
)
def test_values_in_parts_are_those_of_the_whole(kind: str, in_backward: bool) -> None:  # noqa: FBT001 - pytest's
    whole = measured(Hungry(10**6), MONITORS[kind](), **FEW)
    net = Hungry(2, in_backward=in_backward)
    with pytest.warns(UserWarning, match=IN_PARTS.format(r"\w+", "[12]")):
        parts = measured(net, MONITORS[kind](), **FEW)
    assert [row.keys() for row in parts] == [row.keys() for row in whole]
    for found, expected in zip(parts, whole, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_what_worked_is_remembered_within_a_fit() -> None:
    net, monitor = Hungry(3), AttackMonitor(**BALL, masking=False)
    with pytest.warns(UserWarning, match=IN_PARTS.format("AttackMonitor", 2)) as caught:
        fit(net, monitor, max_epochs=3)
    assert net.refused == 2 + 2  # 8 and 4; then 4 once in every epoch, which has three batches
    assert sum("ran out of memory" in str(warning.message) for warning in caught) == 1
    net.refused = 0
    with pytest.warns(UserWarning, match=IN_PARTS.format("AttackMonitor", 2)):
        fit(net, monitor)
    assert net.refused == 2


def test_whole_batches_come_back_with_the_memory() -> None:
    class Shortage(Hungry):
        largest = 0

        def on_validation_start(self) -> None:
            self.largest = 0
            self.most = 1 if self.trainer.sanity_checking else 10**6  # of the two samples that are tried there

        def forward(self, inputs: Tensor) -> Tensor:
            if not self.is_own_step:
                self.largest = max(self.largest, len(inputs))
            return super().forward(inputs)

    net, sizes = Shortage(0), []
    note = Spy("on_validation_epoch_end", lambda trainer, _: trainer.sanity_checking or sizes.append(net.largest))
    with pytest.warns(UserWarning, match=IN_PARTS.format("AttackMonitor", 1)):
        fit(net, AttackMonitor(**BALL, masking=False, logits_fn=Shortage.__call__), note, max_epochs=4)
    assert sizes == [2, 4, 8, 8]


def test_certificate_is_tried_once_whatever_the_batch() -> None:
    """Its memory is that of the weights."""

    class Uncertifiable(Hungry):
        tried = 0

        def forward(self, inputs: Tensor) -> Tensor:
            if type(inputs) is not Tensor and not self.is_own_step:
                self.tried += 1
                too_much()
            return super().forward(inputs)

    net = Uncertifiable(10**6)
    with pytest.warns(UserWarning, match=SKIPPED.format("LocalRobustnessMonitor", 0)):
        fit(net, LocalRobustnessMonitor(**BALL, lipschitz="certified"), num_sanity_val_steps=0, max_epochs=2)
    assert net.tried == 2  # once per measurement


@pytest.mark.parametrize("kind", ["trajectory", "estimated"])
def test_too_little_for_one_sample_costs_the_point_only(kind: str) -> None:
    alone = Net()
    measured(alone, [], **FEW)
    net, monitors = Hungry(0), MONITORS[kind]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert measured(net, monitors, **FEW) == []
    said = [str(warning.message) for warning in caught if "leaves out that point" in str(warning.message)]
    assert len(said) == len(monitors)
    assert net.training_steps == alone.training_steps
    for ours, expected in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_points_come_back_with_the_memory() -> None:
    net, monitor = Hungry(10**6), AttackMonitor(**BALL, masking=False)

    class Shortage(Hungry):
        def on_validation_start(self) -> None:
            self.most = 0 if self.current_epoch == 1 and not self.trainer.sanity_checking else 10**6

    net = Shortage(0)
    with pytest.warns(UserWarning, match=SKIPPED.format("AttackMonitor", 1)) as caught:
        fit(net, monitor, max_epochs=4)
    assert sum("memory" in str(warning.message) for warning in caught) == 1
    assert epochs(monitor) == [0, 2, 3]  # type: ignore[arg-type]


def test_metrics_that_need_too_much_leave_out_the_point() -> None:
    net = Net()

    def hungry(batch: Any) -> Any:
        return too_much() if net.current_epoch == 1 else batch

    monitor = RelativeFlatnessMonitor(inputs_and_targets=hungry)
    with pytest.warns(UserWarning, match=SKIPPED.format("RelativeFlatnessMonitor", 1)):
        fit(net, monitor, max_epochs=3)
    assert epochs(monitor) == [0, 2]


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    """Let the process map so much more memory than it has mapped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Wide(Hungry):
    """Takes 64 MiB per sample, and as much again for gradients, but in its own steps."""

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        if self.is_own_step:
            return logits
        return logits + 1e-3 * inputs.sum(1, keepdim=True).expand(-1, 2**23).square().relu().mean(1, keepdim=True)


def short_of_memory() -> None:
    def monitor() -> AttackMonitor:
        return AttackMonitor(**BALL, budget=None, attacks={"PGD": {"steps": 2}}, masking=False)

    whole = measured(Wide(10**6), [monitor()], **FEW)
    gc.collect()
    with pytest.warns(UserWarning, match=IN_PARTS.format("AttackMonitor", "[1248]")), at_most(320):
        parts = measured(Wide(10**6), [monitor()], **FEW)
    assert parts == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in whole]


def test_real_shortage(tmp_path: Path) -> None:
    # In a process of its own: this one may have mapped enough before, and freed it.
    log = tmp_path / "log"
    assert finished(start(run_module, __name__, output=log)) == 0, log.read_text()


def test_what_a_failed_attempt_held_is_let_go() -> None:
    net, held = Net(), []

    def attack(logits_fn: Any, inputs: Tensor, target: Tensor, **settings: Any) -> AttackResult:
        assert not any(tensor() is not None for tensor in held)
        kept = inputs.clone()
        held.append(ref(kept))
        if len(held) == 1:
            too_much()
        return pgd(logits_fn, kept, target, ThreatModel(epsilon=0.3, lower=-5.0, upper=5.0), steps=2, **settings)

    monitor = AttackMonitor(**BALL, budget=None, attacks={"own": attack}, masking=False)
    with pytest.warns(UserWarning, match=IN_PARTS.format("AttackMonitor", 4)):
        fit(net, monitor, num_sanity_val_steps=0)
    assert len(held) == 4  # three batches, the first one twice


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
    ids=repr,
)
def test_shortage_is_known_by_many_names(error: Exception) -> None:
    """Those that cannot be had on every machine, in the words of torch."""
    assert is_out_of_memory(error)
    with pytest.raises(ValueError, match="cannot attack") as caught:
        raise ValueError("cannot attack") from error
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("out of ideas"), ValueError("CUDA out of memory"), None], ids=repr)
def test_other_errors_are_no_shortage(error: Exception | None) -> None:
    assert not is_out_of_memory(error)


def test_shortage_of_the_allocator_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        too_much()
    assert is_out_of_memory(caught.value)


def test_parts_differentiate_twice() -> None:
    memory = Memory("Test")
    memory.rows = 2
    inputs = torch.arange(5.0).requires_grad_()
    cubes = memory.in_parts(lambda x: x**3)(inputs)
    (first,) = torch.autograd.grad(cubes.sum(), inputs, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), inputs)
    assert torch.equal(second, 6 * inputs)


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def work() -> None:
        calls.append(None)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"^broken$"):
        Memory("Test").suffice(work, 8)
    assert len(calls) == 1


@pytest.mark.parametrize("is_explicit", [True, False])
def test_what_earlier_errors_of_a_chain_held_is_let_go(is_explicit: bool) -> None:  # noqa: FBT001 - pytest's
    held = []

    def fails() -> None:
        kept = torch.zeros(1)
        held.append(ref(kept))
        too_much()

    def fails_otherwise() -> None:
        try:
            fails()
        except RuntimeError as error:
            raise RuntimeError("CUDA out of memory") from (error if is_explicit else None)

    with pytest.raises(RuntimeError, match="CUDA out of memory") as caught:
        fails_otherwise()
    assert held[0]() is not None
    free_memory_of(caught.value)
    assert held[0]() is None


if __name__ == "__main__":
    short_of_memory()
