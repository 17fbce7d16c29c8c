"""A network that is 1-Lipschitz by construction beside an ordinary one: where a certificate is worth something.

Run it with ``uv run python -m examples.lipschitz``. Both learn the MNIST digits; then the accuracy that is certified
for every l2 perturbation of a length is set beside the accuracy that attacks of that length leave. The truth lies
between.
"""

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
from torch.optim.lr_scheduler import OneCycleLR
from typing_extensions import override

from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, LocalRobustnessMonitor
from lightning_flatness.tracking.bound_curves import accuracies_over_epsilon

RADII = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Lengths of the perturbations, for pixels in [0, 1]."""


class LipschitzDigitClassifier(DigitClassifier):
    """Four layers that lengthen no vector, so that the features of two digits are no farther apart than the digits.

    Args:
        learning_rate: peak of the schedule.
        scale: of the logits in the loss. They differ by no more than the digits do, too little for a small loss; the
            smaller the scale, the larger the margins, and the lower the accuracy.
        width: of the hidden layers.
    """

    def __init__(self, learning_rate: float = 5e-3, scale: float = 3.0, width: int = 256) -> None:
        super().__init__(learning_rate)
        self.scale = scale
        self.features = nn.Sequential(
            nn.Flatten(),
            spectral_norm(nn.Linear(784, width)),
            nn.ReLU(),
            orthogonal(nn.Linear(width, width), orthogonal_map="cayley"),
            nn.ReLU(),
            orthogonal(nn.Linear(width, width), orthogonal_map="cayley"),
            nn.ReLU(),
        )
        self.head = orthogonal(nn.Linear(width, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, of scaled logits."""
        del batch_idx
        images, labels = batch
        loss: Tensor = self.loss(self.scale * self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    @override
    def configure_optimizers(self) -> Any:
        """Adam with a one-cycle schedule."""
        optimizer = torch.optim.Adam(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def measure(module: LightningModule, epochs: int, samples: int | None = None) -> dict[str, Any]:
    """Train a classifier, and attack and certify it once.

    Args:
        module: to train.
        epochs: of training.
        samples: validation digits that are attacked and certified; None for all.

    Returns:
        What was logged, by key.
    """
    data = MNISTDigits()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    Trainer(max_epochs=epochs, **quiet).fit(module, data)
    bounds = LocalRobustnessMonitor(RADII[-1], norm="l2", lipschitz="certified", radii=RADII, max_samples=samples)
    attacks = AttackMonitor(RADII[-1], norm="l2", epsilons=RADII, max_samples=samples)
    Trainer(callbacks=[bounds, attacks], **quiet).validate(module, data, verbose=False)
    return {**bounds.history()[-1], **attacks.history()[-1]}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write certified and attacked accuracies of several networks, a line per radius."""
    columns = {
        f"{name}, {kind.split(',')[0]}": accuracies
        for name, row in results.items()
        for kind, (_, accuracies) in accuracies_over_epsilon(row).items()
    }
    lines = ["  ".join(["l2 radius", *columns])]
    for place, radius in enumerate(RADII):
        cells = (f"{accuracies[place]:.3f}".ljust(len(column)) for column, accuracies in columns.items())
        lines.append("  ".join([f"{radius:<9g}", *cells]))
    return "\n".join(lines)


def figure(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the accuracies over the radius, a panel per network."""
    drawn = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (name, row) in zip(drawn.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for kind, (radii, accuracies) in accuracies_over_epsilon(row).items():
            axes.plot(radii, accuracies, marker="o", label=kind.split(",")[0])
        lipschitz = row["bound/lipschitz_certified"]
        axes.set(title=f"{name}, L ≤ {lipschitz:.3g}", xlabel="l2 radius", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.grid(visible=True, alpha=0.25)
        axes.legend(frameon=False)
    return drawn


def main() -> None:
    """Compare both networks."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("logs/lipschitz.png"), metavar="FILE")
    arguments = parser.parse_args()
    seed_everything(0, verbose=False)
    modules = {"ordinary": DigitClassifier(), "1-Lipschitz": LipschitzDigitClassifier()}
    results = {name: measure(module, arguments.epochs) for name, module in modules.items()}
    print(table(results))  # noqa: T201 - the result
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure(results).savefig(arguments.output, dpi=150)
    print(f"The curves are in {arguments.output}.")  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
