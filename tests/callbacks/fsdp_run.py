"""One of two processes that train a module sharded by FSDP2; started by ``test_fsdp.py``.

Its arguments are the folder to write to and the scenarios to run, one after the other.
"""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks import _sharding
from lightning_flatness.callbacks._monitor import Monitor
from tests.callbacks.conftest import CLASSES, DIM, HIDDEN, Net, Spy, loader, trainer
from tests.callbacks.traffic import Traffic

ODD = 29
BALL: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
# The process group is not called "gloo", so that Lightning evaluates in inference mode, as it does with "nccl".
BACKEND = "cpu:gloo,cuda:gloo"


class Twice(nn.Module):
    """An affine head that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, HIDDEN))

    def forward(self, features: Tensor) -> Tensor:
        return 2 * features @ self.weight.T


class Sharded(Net):
    """Shards the parts with the given names, and itself."""

    def __init__(self, *parts: str, head: nn.Module | None = None, **settings: Any) -> None:
        body = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        super().__init__(body, head)
        self.parts, self.settings = parts, settings

    def configure_model(self) -> None:
        if isinstance(self, FSDPModule) or self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for name in self.parts:
            fully_shard(self.get_submodule(name), mesh=mesh, **self.settings)
        fully_shard(self, mesh=mesh, **self.settings)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def monitors(**settings: Any) -> list[Monitor]:
    """All five; quick, and what they measure does not depend on the number of processes."""
    return [
        RelativeFlatnessMonitor(**settings),
        LocalRobustnessMonitor(0.1, lipschitz="certified", **BALL, **settings),
        LocalRobustnessMonitor(0.1, group="estimated_bound", lipschitz_samples=7, **BALL, **settings),
        AttackMonitor(0.3, epsilons=[0.1], masking_samples=10, masking_every_n=1, **BALL, **settings),
        AttackTrajectoryMonitor(0.3, path=["attack", "noise"], steps=3, **BALL, **settings),
        HeadScalingMonitor(0.2, scales=(0.5, 1.0), steps=3, attack_samples=9, **BALL, **settings),
    ]


class Counted(AttackMonitor):
    """Counts what is sent while it measures, and what its forwards would send outside."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(0.3, **BALL, **settings)
        self.inside: list[int] = []
        self.outside: list[int] = []
        self.gradients_kept = True

    def _measure(self, step: Any) -> None:
        with Traffic() as sent:
            super()._measure(step)
            for _ in range(step.trainer.global_rank):  # processes run the module a different number of times
                step.module(step.inputs)
        self.inside.append(sent.calls.total())
        self.gradients_kept &= all(parameter.grad is None for parameter in step.module.parameters())

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        with Traffic() as sent:
            pl_module(torch.zeros(1, DIM))
        self.outside.append(sent.calls.total())


class Gathers:
    """Counts what is sent while a batch is measured: whether parameters are needed, and parameters."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **BALL, **settings)
        self.batches: list[int] = []

    def on_validation_batch_end(self, *args: Any) -> None:
        with Traffic() as sent:
            super().on_validation_batch_end(*args)  # type: ignore[misc]
        self.batches.append(sent.calls.total())


class Spent(Gathers, AttackMonitor):
    """Attacks the fewest samples."""


class Bounds(Gathers, LocalRobustnessMonitor):
    """Estimates few constants."""


class Unhooked(AttackMonitor):
    """One process does not find FSDP's hooks at first."""

    @contextmanager
    def _whole(self, trainer: Any, *args: Any) -> Iterator[None]:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        known = _sharding._HOOKS
        _sharding._HOOKS = "other" if fitting and trainer.global_rank and not trainer.current_epoch else known
        try:
            with super()._whole(trainer, *args):
                yield
        finally:
            _sharding._HOOKS = known


class Breaks(AttackMonitor):
    """Fails on one process in the midst of a forward, of a backward, and behind both."""

    def _measure(self, step: Any) -> None:
        fitting = step.trainer.state.fn == "fit" and not step.trainer.sanity_checking
        if fitting and step.trainer.global_rank == 1 and step.trainer.current_epoch < 3:
            with self._run_again(step):
                self._break(step.module, step.inputs.clone().requires_grad_(), step.trainer.current_epoch)
        super()._measure(step)

    def _break(self, module: Net, inputs: Tensor, place: int) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("out of memory")

        with torch.enable_grad():
            if place == 0:
                with module.body[1].register_forward_hook(fail):  # type: ignore[index]
                    module(inputs)
            elif place == 1:
                hidden = module.body(inputs)
                hidden.register_hook(fail)
                torch.autograd.grad(module.head(hidden).sum(), inputs)
            fail()


INNER = ("body.0", "body.2")
# Scenario → module, monitors and what the trainer is told.
SCENARIOS: dict[str, Callable[[], tuple[Sharded, list[Any], dict[str, Any]]]] = {
    "layers": lambda: (Sharded(*INNER), [RelativeFlatnessMonitor()], {}),
    "head": lambda: (Sharded("body.0", "head"), monitors(), {}),
    "accumulated": lambda: (
        Sharded(*INNER),
        [RelativeFlatnessMonitor(), AttackMonitor(0.3, masking=False, **BALL)],
        {"accumulate_grad_batches": 2, "val_check_interval": 1},
    ),
    "block": lambda: (
        Sharded("body", reshard_after_forward=True),
        [RelativeFlatnessMonitor(head="head"), LocalRobustnessMonitor(0.1, lipschitz="certified", **BALL)],
        {},
    ),
    "other_head": lambda: (Sharded("head", head=Twice()), [RelativeFlatnessMonitor(head="head")], {}),
    "bfloat16": lambda: (
        Sharded(*INNER, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)),
        [RelativeFlatnessMonitor(), AttackMonitor(0.3, masking=False, **BALL)],
        {"max_epochs": 1},
    ),
    "one_sample": lambda: (Sharded(*INNER, "head"), monitors(max_samples=1), {"max_epochs": 1}),
    "counted": lambda: (Sharded(*INNER, "head"), [Counted()], {"max_epochs": 1}),
    "spent": lambda: (
        Sharded(*INNER, "head"),
        [
            Bounds(0.1, group="before", lipschitz_samples=4),
            Spent(0.3, max_time_fraction=1e-9, masking=False),
            Bounds(0.1, group="after", lipschitz_samples=4),
        ],
        {"val_samples": 16 * 10, "num_sanity_val_steps": 0},
    ),
    "unhooked": lambda: (
        Sharded(*INNER, "head"),
        [Unhooked(0.3, on_error="warn", masking=False, **BALL)],
        {},
    ),
    "breaks": lambda: (
        Sharded(*INNER, "head"),
        [Breaks(0.3, on_error="warn", masking=False, **BALL)],
        {"max_epochs": 4},
    ),
}


def strategy(**sizes: int) -> ModelParallelStrategy:
    sizes = sizes or {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return ModelParallelStrategy(**sizes, process_group_backend=BACKEND, timeout=timedelta(seconds=300))


def fitted(scenario: str, *, watched: bool) -> tuple[Sharded, list[Any], dict[str, Tensor], list[int]]:
    torch.manual_seed(0)
    net, callbacks, settings = SCENARIOS[scenario]()
    shards: list[int] = []
    look = Spy("on_train_batch_start", lambda *_: shards.append(sum(isinstance(x, DTensor) for x in net.parameters())))
    chosen: list[Callback] = [*callbacks, look] if watched else [look]
    options = {"max_epochs": 2, "devices": 2, "strategy": strategy(), "num_sanity_val_steps": 1, **settings}
    val = loader(options.pop("val_samples", ODD), seed=1)
    trainer(*chosen, **options).fit(net, loader(48), val)
    return net, callbacks, {name: whole(one.detach()) for name, one in net.named_parameters()}, shards


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.clone()


def run(scenario: str, folder: Path) -> None:
    _, _, weights_alone, shards_alone = fitted(scenario, watched=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net, callbacks, weights, shards = fitted(scenario, watched=True)
        trainer(*callbacks, devices=2, strategy=strategy()).validate(net, loader(ODD, seed=1), verbose=False)
    found = {
        "histories": [callback.history() for callback in callbacks],
        "same": all(torch.equal(weight, weights_alone[name]) for name, weight in weights.items()),
        "warnings": [str(one.message) for one in caught],
        "shards": shards,
        "shards_alone": shards_alone,
        "batches": [callback.batches for callback in callbacks if isinstance(callback, Gathers)],
        "inside": [callback.inside for callback in callbacks if isinstance(callback, Counted)],
        "outside": [callback.outside for callback in callbacks if isinstance(callback, Counted)],
        "kept": [callback.gradients_kept for callback in callbacks if isinstance(callback, Counted)],
    }
    keep(scenario, folder, found, weights)


def evaluate(folder: Path) -> None:
    """Evaluate a module that has never run, in inference mode."""
    torch.manual_seed(0)
    net, callbacks = Sharded(*INNER, "head"), monitors()
    modes: list[bool] = []
    look = Spy("on_validation_batch_start", lambda *_: modes.append(torch.is_inference_mode_enabled()))
    runner = trainer(*callbacks, look, devices=2, strategy=strategy())
    runner.validate(net, loader(ODD, seed=1), verbose=False)
    found = {"histories": [callback.history() for callback in callbacks], "modes": modes}
    keep("evaluation", folder, found, {name: whole(one) for name, one in net.named_parameters()})


def refuse(folder: Path) -> None:
    """Have every monitor refuse modules whose tensors are shared out."""
    refusals, net = [], Sharded()
    for monitor in monitors():
        shares = strategy(data_parallel_size=1, tensor_parallel_size=2)
        runner = trainer(monitor, devices=2, strategy=shares)
        try:
            runner.fit(net, loader(48), loader(ODD, seed=1))
        except ValueError as error:
            refusals.append(str(error))
    keep("tensor_parallel", folder, {"refusals": refusals, "steps": net.training_steps}, {})


def keep(scenario: str, folder: Path, found: dict[str, Any], weights: dict[str, Tensor]) -> None:
    rank = torch.distributed.get_rank()
    torch.save(weights, folder / f"{scenario}.{rank}.pt")
    (folder / f"{scenario}.{rank}.json").write_text(json.dumps(found))


OTHERS = {"evaluation": evaluate, "tensor_parallel": refuse}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, *scenarios = sys.argv[1:]
    for name in scenarios:
        print(name, flush=True)  # noqa: T201
        OTHERS[name](Path(place)) if name in OTHERS else run(name, Path(place))
    torch.distributed.destroy_process_group()
