"""Foreign models in a plain module, all monitors on them, and what has to be true of what they log."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

import importlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from tests.callbacks.conftest import trainer

CLASSES, COUNT = 5, 6
EPSILON = 2 / 255
ROBUST, SUCCESS = "attack/linf_2_255_robust_accuracy", "attack/linf_2_255_success_rate"


def foreign(name: str) -> Any:
    """A package of the dependency group `zoo`; some of them warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name, reason=f"{name} is not installed: uv sync --group zoo")
        return importlib.import_module(name)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Wrapped(LightningModule):
    """The plainest module around a network of someone else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0

    def forward(self, inputs: Tensor) -> Any:
        self.forwards += 1
        return self.model(inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


def images(side: int = 32, count: int = COUNT) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(count, 3, side, side, generator=generator)
    return [(picture, index % CLASSES) for index, picture in enumerate(pictures)]


def loader(data: Sequence[Any], batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(data, batch_size)  # type: ignore[arg-type]


def monitors(head: str | None = None, **shared: Any) -> list[Callback]:
    """All of them, in small."""
    small: dict[str, Any] = {"epsilon": EPSILON, **shared}
    return [
        RelativeFlatnessMonitor(head=head, **_without(shared, "logits_fn")),
        AttackMonitor(masking=False, max_samples=COUNT, **small),
        LocalRobustnessMonitor(head=head, lipschitz_samples=1, **small),
        AttackTrajectoryMonitor(head=head, steps=2, **small),
        HeadScalingMonitor(head=head, scales=(1.0, 10.0), steps=1, attack_samples=2, **small),
    ]


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def validate(module: LightningModule, data: Sequence[Any], *callbacks: Callback) -> dict[str, float]:
    logged = trainer(*callbacks).validate(module, loader(data), verbose=False)
    return {name: value for part in logged for name, value in part.items()}


def kappa(features: Tensor, weight: Tensor, logits: Tensor) -> Tensor:
    """Relative flatness of each row by its definition, with the Hessian written out."""
    features, weight, probs = features.double(), weight.double(), logits.double().softmax(1)
    hessian = probs.diag_embed() - probs.unsqueeze(2) * probs.unsqueeze(1)
    return features.square().sum(1) * torch.einsum("kd,nkl,ld->n", weight, hessian, weight)


def check_everything(
    module: LightningModule, data: Sequence[Any], expected: Tensor, logits: Tensor, callbacks: Sequence[Callback]
) -> dict[str, float]:
    """All monitors measure the right head, agree with the module, and leave it and the random numbers alone.

    Args:
        module: under evaluation.
        data: samples, whose second parts are classes.
        expected: relative flatness of each sample.
        logits: of each sample.
        callbacks: all monitors, the one of flatness first.
    """
    validate(module, data)  # some networks count their calls
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    validate(module, data)
    undisturbed = torch.get_rng_state()
    torch.manual_seed(0)
    logged = validate(module, data, *callbacks)
    assert torch.equal(torch.get_rng_state(), undisturbed)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())

    target = torch.tensor([label for _, label in data])
    accuracy = (logits.argmax(1) == target).double().mean()
    assert logged["flatness/relative_flatness"] == pytest.approx(float(expected.mean()), rel=2e-4)
    assert logged[ROBUST] == pytest.approx(float(accuracy) * (1 - logged.get(SUCCESS, 0)), rel=1e-6)
    assert logged["scaling/relative_flatness_1"] == pytest.approx(float(expected.mean()), rel=2e-4)
    if float(accuracy):
        clean = expected[logits.argmax(1) == target].mean()
        assert logged["trajectory/clean_flatness"] == pytest.approx(float(clean), rel=2e-4)
    assert "bound/estimated_radius_mean" in logged
    return logged


def seen(module: nn.Module, layer: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
    """What enters and leaves a layer when the module is evaluated."""
    calls: list[tuple[Tensor, Tensor]] = []
    was_training = module.training
    module.eval()
    with (
        torch.no_grad(),
        layer.register_forward_hook(lambda _, args, output: calls.append((args[0].clone(), output.clone()))),
    ):
        module(inputs)
    module.train(was_training)
    (call,) = calls
    return call


def check_linear_head(name: str, model: nn.Module, *, side: int = 32, head: str | None = None) -> None:
    """A network whose classifier is the ``nn.Linear`` of that name; ``head`` is what has to be written."""
    torch.manual_seed(0)
    module, data = Wrapped(model), images(side)
    layer, inputs = model.get_submodule(name), torch.stack([picture for picture, _ in data])
    features, logits = seen(module, layer, inputs)
    weight = layer.weight.detach()
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(features @ weight.T + layer.bias.detach(), logits, rtol=1e-4, atol=1e-4)

    module.forwards = 0
    validate(module, data, flatness := RelativeFlatnessMonitor(head=head))
    assert module.forwards == 2  # batches
    assert flatness.head_name == f"model.{name}"
    check_everything(module, data, kappa(features, weight, logits), logits, monitors(head))
