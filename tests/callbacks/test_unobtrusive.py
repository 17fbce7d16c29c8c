"""Training is bit for bit what it is without the monitor, and nothing of the monitor stays behind."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks import flatness as flatness_module
from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import CLASSES, DIM, HIDDEN, Net, Spy, fit, loader, trainer, validate

# Eight hidden units and 14 samples of random classes: attacks do fail here.
pytestmark = pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")


@pytest.fixture(autouse=True)
def _no_type_checker(unchecked_shapes: AbstractContextManager[None]) -> Iterator[None]:
    """Without beartype, which draws from Python's random numbers to look into sequences."""
    with unchecked_shapes:
        yield


def _augment(inputs: Tensor) -> Tensor:
    return inputs + random.gauss(0, 0.1) + np.random.normal(0, 0.1)


class Noisy(Net):
    """Everything that a careless observer could disturb: dropout, running statistics, random numbers of three kinds."""

    def __init__(self) -> None:
        layers = [nn.Linear(DIM, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, HIDDEN)]
        super().__init__(nn.Sequential(*layers))
        self.augment = _augment

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        loss = nn.functional.cross_entropy(self(self.augment(inputs)), target)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


ACCUMULATION = {"accumulate_grad_batches": 4, "val_check_interval": 2}
OURS = tuple(f"{group}/" for group in (*keys.GROUPS, "certified"))


def _monitors() -> list[Monitor]:
    """All of them, those that run the module again first: they must not disturb what the others see."""
    attacks: dict[str, Any] = {"FAB": {"steps": 2, "n_restarts": 1}}
    unbounded: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
    attack = AttackMonitor(0.3, attacks=attacks, epsilons=[0.1, 0.3], masking_every_n=2, **unbounded)
    bounds = [
        LocalRobustnessMonitor(0.3, lipschitz="estimated", **unbounded),
        LocalRobustnessMonitor(0.3, lipschitz="certified", group="certified", **unbounded),
    ]
    paths = AttackTrajectoryMonitor(0.3, path=["attack", "noise"], steps=2, max_samples=8, **unbounded)
    scaling = HeadScalingMonitor(0.3, scales=(0.5, 1.0, 100.0), attack_samples=12, **unbounded)
    return [scaling, bounds[0], attack, bounds[1], paths, RelativeFlatnessMonitor()]


def _seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def _draws() -> list[Any]:
    return [torch.rand(100).tolist(), np.random.random(100).tolist(), [random.random() for _ in range(100)]]  # noqa: S311


def _train(
    *monitors: Callback, wrap: Callable[[LightningModule], Any], others: list[Callback], settings: dict[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """Everything that training leaves behind, and the losses of every step."""
    _seed()
    net, losses = Noisy(), []
    spy = Spy("on_train_batch_end", lambda runner, *_: losses.append(dict(runner.callback_metrics)))
    runner = trainer(*monitors, *others, spy, **{"max_epochs": 3, **settings})
    runner.fit(wrap(net), loader(32, shuffle=True), loader(20, seed=1))
    optimizer = runner.optimizers[0].state_dict()["state"]
    left = {
        **net.state_dict(),
        **{f"optimizer.{index}.{name}": value for index, state in optimizer.items() for name, value in state.items()},
        **{name: value for name, value in runner.callback_metrics.items() if not name.startswith(OURS)},
    }
    kept = [{name: value for name, value in row.items() if not name.startswith(OURS)} for row in losses]
    return left, [kept, _draws()]


def _same(module: LightningModule) -> LightningModule:
    return module


def test_attack_that_fails_leaves_nothing_behind() -> None:
    def fail(logits_fn: Any, inputs: Tensor, target: Tensor, **_: Any) -> Any:
        torch.rand(1), np.random.random(), random.random()  # noqa: S311
        with torch.inference_mode(mode=False), torch.enable_grad():
            nn.functional.cross_entropy(logits_fn(inputs.clone()), target.clone()).backward()
        raise RuntimeError("broken")

    def attack() -> AttackMonitor:
        own: dict[str, Any] = {"broken": fail}
        return AttackMonitor(0.3, lower=-5.0, upper=5.0, attacks=own, on_error="warn", masking=False)

    arguments: dict[str, Any] = {"wrap": _same, "others": []}
    for settings in ({"num_sanity_val_steps": 0}, {"num_sanity_val_steps": 0, **ACCUMULATION}):
        left, drawn = _train(**arguments, settings=settings)
        with pytest.warns(UserWarning, match="leaves out that point: RuntimeError: broken"):
            left_beside, drawn_beside = _train(attack(), **arguments, settings=settings)
        assert [name for name in left if not torch.equal(left[name], left_beside[name])] == []
        assert drawn == drawn_beside


def test_evaluation_draws_no_random_numbers() -> None:
    def draws(*monitors: Callback) -> list[Any]:
        _seed()
        runner, net = trainer(*monitors), Noisy()
        runner.validate(net, loader(), verbose=False)
        return _draws()

    assert draws(*_monitors()) == draws()


def _hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


class Fails(Net):
    """Fails in the place named."""

    place = ""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.place == "training":
            raise RuntimeError("in training")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.place == "validation":
            raise RuntimeError("in validation")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("in test")


@pytest.mark.parametrize("head", [None, "head"])
def test_no_hook_is_left_after_any_stage(head: str | None) -> None:
    net = Noisy()
    seen: list[int] = []
    attack = AttackMonitor(0.3, lower=-5.0, upper=5.0, head=head)
    spy = Spy("on_train_start", lambda *_: seen.append(_hooks(net)))
    runner = fit(net, RelativeFlatnessMonitor(head=head), attack, spy)
    # Where the head was looked for, the hooks of its candidates stay: without them a compiled module is compiled anew.
    assert seen == [6 if head is None else 3]
    assert _hooks(net) == 0
    runner.validate(net, loader(), verbose=False)
    assert _hooks(net) == 0


@pytest.mark.parametrize("place", ["training", "validation", "test"])
def test_no_hook_is_left_after_an_error(place: str) -> None:
    net, monitor = Fails(), RelativeFlatnessMonitor()
    net.place = place
    run = trainer(monitor).test if place == "test" else partial(trainer(monitor).fit, val_dataloaders=loader())
    with pytest.raises(RuntimeError, match=f"in {place}"):
        run(net, loader())
    assert _hooks(net) == 0


def test_no_hook_is_left_after_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(flatness_module.RelativeFlatness, "update", fail)
    net = Net()
    with pytest.raises(RuntimeError, match="broken"):
        fit(net, RelativeFlatnessMonitor())
    assert _hooks(net) == 0


def test_monitor_goes_on_after_an_error_of_the_module() -> None:
    net, monitor = Fails(), RelativeFlatnessMonitor()
    net.place = "validation"
    with pytest.raises(RuntimeError, match="in validation"):
        fit(net, monitor)
    fit(Net(), monitor)
    assert len(monitor.history()) == 1


def test_modes_and_gradients_are_left_alone() -> None:
    net = Noisy()
    net.body[1].eval()
    net.head.bias.requires_grad_(requires_grad=False)
    before = [part.training for part in net.modules()], [part.requires_grad for part in net.parameters()]
    validate(net, *_monitors())
    assert ([part.training for part in net.modules()], [part.requires_grad for part in net.parameters()]) == before
    assert all(part.grad is None for part in net.parameters())
    assert set(net.state_dict()) == set(Noisy().state_dict())


def test_head_may_be_frozen() -> None:
    net, monitor = Net(head=nn.Linear(HIDDEN, CLASSES).requires_grad_(requires_grad=False)), RelativeFlatnessMonitor()
    fit(net, monitor)
    assert len(monitor.history()) == 1
