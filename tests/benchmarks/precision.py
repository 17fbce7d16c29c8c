"""Errors of the monitors' numbers in each precision: ``python -m tests.benchmarks.precision`` prints the table.

A small network is trained in float32; then every precision evaluates the same weights on the same data. Two errors are
told apart: that of the numbers, given the features and logits which the model has computed in its precision, against
float64 formulas; and that of the model, whose numbers are not those of float32.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks._monitor import Monitor
from tests.callbacks.conftest import Net, trainer

PRECISIONS = ("64-true", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
DIM, HIDDEN, CLASSES, SAMPLES, EPSILON, LIPSCHITZ, SCALE = 8, 32, 5, 256, 0.5, 50.0, 10.0
ATTACK = "attack/linf_0_5"
SHOWN = {
    "κ": "flatness/relative_flatness",
    "top eigenvalue": "flatness/top_eigenvalue",
    "certified radius": "bound/certified_radius_mean",
    "bound on the loss": "bound/loss_increase",
}
"""Of which the change of the model is shown."""


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU())


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    centres = torch.randn(CLASSES, DIM, generator=generator)
    return TensorDataset(centres[target] + torch.randn(SAMPLES, DIM, generator=generator), target)


@cache
def trained() -> dict[str, Tensor]:
    """Weights after a few steps in float32 on the CPU."""
    torch.manual_seed(0)
    net, (inputs, target) = Net(body(), nn.Linear(HIDDEN, CLASSES)), data().tensors
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.state_dict()


def monitors() -> list[Monitor]:
    ball: dict[str, Any] = {"epsilon": EPSILON, "lower": None, "upper": None}
    return [
        RelativeFlatnessMonitor(),
        LocalRobustnessMonitor(**ball, lipschitz=LIPSCHITZ),
        AttackMonitor(**ball, masking=False),
        AttackTrajectoryMonitor(**ball, steps=5, max_samples=None),
        HeadScalingMonitor(**ball, scales=(1.0, SCALE), steps=5),
    ]


def evaluate(precision: Any, device: torch.device, net: Net | None = None, wrap: Any = lambda net: net) -> Any:
    """All values of the monitors, and what the module's own validation gave its head."""
    net = Net(body(), nn.Linear(HIDDEN, CLASSES)) if net is None else net
    net.load_state_dict(trained())
    made = monitors()
    runner = trainer(*made, precision=precision, accelerator="gpu" if device.type == "cuda" else "cpu")
    runner.validate(wrap(net), DataLoader(data(), 64), verbose=False)
    values = {name: value for monitor in made for name, value in monitor.history()[-1].items() if "/" in name}
    steps = [seen for seen in net.seen if len(seen) == 4]  # attacks run the module again, and leave no target
    features, logits, target = (torch.cat([seen[part].cpu() for seen in steps]) for part in (0, 2, 3))
    return values, (features, logits, target, steps[0][1].cpu())


def by_definition(features: Tensor, logits: Tensor, target: Tensor, weight: Tensor) -> dict[str, float]:
    """The same quantities by their definitions, literally and in float64."""
    features, logits, weight = features.double(), logits.double(), weight.double()
    rows, correct = torch.arange(len(target)), logits.argmax(1) == target
    margins = logits[rows, target].unsqueeze(1) - logits
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")[target]
    radii = (margins / distances).masked_fill(distances == 0, torch.inf).amin(1).clamp(min=0) / LIPSCHITZ
    probs = logits.softmax(1)
    blocks = probs.diag_embed() - probs.unsqueeze(2) * probs.unsqueeze(1)
    hessian = torch.einsum("nij,nk,nl->ikjl", blocks, features, features).reshape(weight.numel(), -1) / len(target)
    kappa = _kappa(features, logits, weight)
    return {
        "flatness/relative_flatness": float(kappa.mean()),
        "flatness/confidence_factor": float((probs * (1 - probs)).sum(1).mean()),
        "flatness/top_eigenvalue": float(torch.linalg.eigvalsh(hessian)[-1]),
        "bound/certified_radius_mean": float(torch.where(correct, radii, 0).mean()),
        "trajectory/clean_flatness": float(kappa[correct].mean()),
        "scaling/relative_flatness_10": float(_kappa(features, SCALE * logits, SCALE * weight).mean()),
        "scaling/loss_10": float(nn.functional.cross_entropy(SCALE * logits, target)),
    }


def _kappa(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    probs = logits.softmax(1)
    offsets = weight - (probs @ weight).unsqueeze(1)
    return features.square().sum(1) * (probs * offsets.square().sum(2)).sum(1)


def errors(values: dict[str, float], definition: dict[str, float]) -> dict[str, float]:
    """Relative error of each number, given features and logits."""
    return {name: abs(values[name] / exact - 1) for name, exact in definition.items()}


def line(precision: str, device: torch.device) -> list[str]:
    values, seen = evaluate(precision, device)
    reference, _ = evaluate("32-true", device)
    own = max(errors(values, by_definition(*seen)).values())
    changes = [f"{values[key] / reference[key] - 1:+.1e}" for key in SHOWN.values()]
    rates = [
        f"{values[key]:.3f} ({values[key] - reference[key]:+.3f})"
        for key in (f"{ATTACK}_success_rate", f"{ATTACK}_robust_accuracy", "trajectory/success_rate")
    ]
    return [f"`{precision}`", f"{own:.0e}", *changes, *rates, f"{values['bound/violation_rate']:g}"]


def main(arguments: Sequence[str]) -> None:
    device = torch.device(arguments[0] if arguments else "cpu")
    head = ["precision", "error of the numbers", *SHOWN, "success rate", "robust accuracy"]
    rows = [[*head, "success along the path", "violations"], ["---"] * (len(head) + 2)]
    # On a CPU Lightning replaces 16-mixed by bf16-mixed.
    rows += [line(name, device) for name in PRECISIONS if device.type == "cuda" or name != "16-mixed"]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
