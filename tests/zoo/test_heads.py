"""Heads that are more, or something else, than one plain ``nn.Linear``."""
# The signatures of steps are Lightning's.

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_flatness import RelativeFlatnessMonitor
from tests.zoo.conftest import (
    CLASSES,
    Wrapped,
    check_everything,
    foreign,
    images,
    kappa,
    monitors,
    seen,
    validate,
)

DIM = 12


class LowRank(nn.Module):
    """A hand-written adapter: ``x (W + s B A)ᵀ + b``."""

    def __init__(self, base: nn.Linear, *, in_place: bool = False) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))
        self.in_place = in_place

    def weight(self) -> Tensor:
        return self.base.weight + 0.5 * self.b @ self.a

    def forward(self, inputs: Tensor) -> Tensor:
        logits, change = self.base(inputs), 0.5 * inputs @ self.a.T @ self.b.T
        return logits.add_(change) if self.in_place else logits + change


class LowRankOfLayers(LowRank):
    """The same of two more linear layers, which are called behind the first."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.down.weight, self.up.weight = self.a, self.b

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + 0.5 * self.up(self.down(inputs))


class Subclass(nn.Linear):
    """A linear layer whose weight is not all of it."""

    def __init__(self) -> None:
        super().__init__(DIM, CLASSES)
        self.change = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + inputs @ self.change.T


def linear() -> nn.Linear:
    return nn.Linear(DIM, CLASSES)


def network(head: nn.Module, *, keeps_positions: bool = False) -> nn.Sequential:
    pooling: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if keeps_positions else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, DIM, 3), nn.GELU(), *pooling, head, nn.Flatten())


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor], str | None]] = {
    "weight_norm": (lambda: weight_norm(linear()), lambda head: head.weight, None),
    "spectral_norm": (lambda: spectral_norm(linear()), lambda head: head.weight, None),
    "dropout": (lambda: nn.Sequential(nn.Dropout(), linear()), lambda head: head[1].weight, None),
    "dropout, named": (lambda: nn.Sequential(nn.Dropout(), linear()), lambda head: head[1].weight, "model.4"),
    "adapter": (lambda: LowRank(linear()), LowRank.weight, None),
    "adapter in place": (lambda: LowRank(linear(), in_place=True), LowRank.weight, None),
    "adapter of layers": (lambda: LowRankOfLayers(linear()), LowRank.weight, None),
    "adapter, named": (lambda: LowRank(linear()), LowRank.weight, "model.4"),
    "subclass": (Subclass, lambda head: head.weight + head.change, None),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_weight_is_the_one_that_makes_the_logits(kind: str) -> None:
    make, weight_of, name = WEIGHTS[kind]
    torch.manual_seed(0)
    head = make()
    module, data = Wrapped(network(head)), images()
    features, logits = seen(module, head, torch.stack([picture for picture, _ in data]))
    weight = weight_of(head).detach()
    bias = logits[0] - features[0] @ weight.T
    assert torch.allclose(features @ weight.T + bias, logits, atol=1e-5)
    check_everything(module, data, kappa(features, weight, logits), logits, monitors(name))


def test_convolution_of_one_position() -> None:
    torch.manual_seed(0)
    head = nn.Conv2d(DIM, CLASSES, 1)
    module, data = Wrapped(network(head, keeps_positions=True)), images()
    features, logits = (part.flatten(1) for part in seen(module, head, torch.stack([picture for picture, _ in data])))
    weight = head.weight.detach().flatten(1)
    check_everything(module, data, kappa(features, weight, logits), logits, monitors("model.3"))


def test_convolution_of_many_positions_measures_each() -> None:
    torch.manual_seed(0)
    head = nn.Conv2d(DIM, CLASSES, 1)
    module = Wrapped(nn.Sequential(nn.Conv2d(3, DIM, 3, padding=1), nn.GELU(), head))
    pictures = torch.stack([picture for picture, _ in images(8)])
    masks = torch.randint(CLASSES, (len(pictures), 8, 8))
    data = list(zip(pictures, masks, strict=True))
    features, logits = (part.movedim(1, -1).flatten(0, -2) for part in seen(module, head, pictures))
    expected = kappa(features, head.weight.detach().flatten(1), logits)
    right = logits.argmax(1) == masks.flatten()
    logged = validate(module, data, RelativeFlatnessMonitor(head="model.2"))
    assert logged["flatness/relative_flatness"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert logged["flatness/correct"] == pytest.approx(float(expected[right].mean()), rel=1e-4)


@pytest.mark.parametrize("name", [None, "model.base_model.model.4"])
def test_lora_of_peft(name: str | None) -> None:
    peft = foreign("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["4"], r=2, lora_alpha=6, init_lora_weights=False, lora_dropout=0.5)
    model = peft.get_peft_model(network(linear()), config)
    head = model.base_model.model[4]
    module, data = Wrapped(model), images()
    features, logits = seen(module, head, torch.stack([picture for picture, _ in data]))
    weight = (head.base_layer.weight + head.get_delta_weight("default")).detach()
    assert torch.allclose(features @ weight.T + head.base_layer.bias, logits, atol=1e-5)
    check_everything(module, data, kappa(features, weight, logits), logits, monitors(name))
    validate(module, data, monitor := RelativeFlatnessMonitor(head=name))
    assert monitor.head_name == "model.base_model.model.4"


def test_spectral_norm_that_keeps_training_is_left_alone() -> None:
    """In training mode every look at the weight is a step of the power method."""

    class AlwaysTraining(Wrapped):
        def on_validation_model_eval(self) -> None:
            self.train()

    def state(*callbacks: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = AlwaysTraining(network(spectral_norm(linear())))
        validate(module, images(), *callbacks)
        return module.state_dict()

    alone, watched = state(), state(RelativeFlatnessMonitor())
    assert all(torch.equal(watched[name], value) for name, value in alone.items())
