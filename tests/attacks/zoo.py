"""Every attack of torchattacks with small settings, and a small model for them."""

import inspect
import random
from functools import cache
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from lightning_flatness.attacks import ThreatModel, TorchattacksAttack, from_torchattacks
from lightning_flatness.attacks._zoo import ZOO
from tests.attacks.models import digits

QUICK: dict[str, dict[str, Any]] = {
    "APGD": {"steps": 5},
    "APGDT": {"steps": 3},
    "CW": {"c": 5, "steps": 30, "lr": 0.05},
    "DeepFool": {"steps": 3},
    "EADEN": {"max_iterations": 20, "binary_search_steps": 3, "initial_const": 1.0},
    "EADL1": {"max_iterations": 20, "binary_search_steps": 3, "initial_const": 1.0},
    "FAB": {"steps": 5},
    "GN": {"std": 0.3},
    "JSMA": {"gamma": 0.06},
    "OnePixel": {"pixels": 4, "steps": 2},
    "Pixle": {"restarts": 2},
    "SPSA": {"nb_iter": 3, "nb_sample": 32, "lr": 0.1},
    "SparseFool": {"steps": 1},
    "Square": {"n_queries": 50},
    "VMIFGSM": {"N": 2, "steps": 3},
    "VNIFGSM": {"N": 2, "steps": 3},
}
HARMLESS = {"VANILA"}


def threat_for(name: str, **more: Any) -> ThreatModel:
    """Threat model in a norm that the attack takes; without a ball of its own, it needs a large one."""
    return ThreatModel("linf", 0.2, **more) if ZOO[name].norm == "linf" else ThreatModel("l2", 3.5, **more)


def quick(name: str, threat: ThreatModel | None = None) -> TorchattacksAttack:
    return from_torchattacks(name, threat or threat_for(name), **QUICK.get(name, {}))


def by_hand(name: str, model: nn.Module, seed: int) -> Any:
    """Make the attack that the guard makes, without a guard."""
    kind = getattr(torchattacks, name)
    seeds = {"seed": seed} if "seed" in inspect.signature(kind).parameters else {}
    attack = kind(model, **quick(name)._recipe.arguments | seeds)
    for part in attack._autoattack.attacks if name == "AutoAttack" else ():
        part.steps, part.rescale_schedule = 100, False
    return attack


@cache
def colour_model(channels: int = 3) -> nn.Sequential:
    """Train on 2,000 digits of 7 x 7 pixels; one dropout and one frozen normalisation, and mixed modes."""
    images, labels = (part[:2000] for part in small_digits(channels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(8 * 49, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(3):
            for rows in torch.randperm(2000).split(100):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval()
    # Modes that change nothing, but that eval() or train() on the whole would lose.
    model.training = model[0].training = True
    model[5].bias.requires_grad_(requires_grad=False)
    model.zero_grad()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    return model


@cache
def small_digits(channels: int = 3) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return nn.functional.avg_pool2d(images, 4).repeat(1, channels, 1, 1), labels


def eight(channels: int = 3) -> tuple[Tensor, Tensor]:
    """Eight digits that no model was trained on; the first has a wrong label."""
    images, labels = (part[4000:4008].clone() for part in small_digits(channels))
    labels[0] = (labels[0] + 1) % 10
    return images, labels


class Footprints:
    """All that an attack could leave behind on a model and on global random numbers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modes = [module.training for module in model.modules()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]
        self.grads = [parameter.grad for parameter in model.parameters()]
        self.values = [None if grad is None else grad.clone() for grad in self.grads]
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.torch, self.numpy, self.python = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def assert_none(self) -> None:
        assert [module.training for module in self.model.modules()] == self.modes
        assert [parameter.requires_grad for parameter in self.model.parameters()] == self.flags
        for parameter, grad, value in zip(self.model.parameters(), self.grads, self.values, strict=True):
            assert parameter.grad is grad
            assert grad is None or torch.equal(grad, value)
        for key, value in self.model.state_dict().items():
            assert torch.equal(value, self.state[key])
        assert torch.equal(torch.get_rng_state(), self.torch)
        assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), self.numpy, strict=True))
        assert random.getstate() == self.python
