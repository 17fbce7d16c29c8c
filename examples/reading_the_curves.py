"""Four trainings on 5,000 MNIST digits whose curves mean different things, for the page "Reading the curves".

Run it with ``uv run python -m examples.reading_the_curves --folder logs/reading --pictures docs/images``. It writes the
four pictures and the table of first and last values that the page shows, and prints the table; the logs are in the
folder.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from examples.adversarial_training import AdversarialDigitClassifier
from examples.compare_runs import ConfidentDigitClassifier
from examples.local_sweep import new_folder
from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import Row, read_epochs
from lightning_flatness.tracking.curves import curves_figure

EPSILON = 0.1
"""Radius of the linf ball, for pixels in [0, 1]."""
ATTACKED_SAMPLES = 200
OURS = keys.attack_key(keys.threat_label("linf", EPSILON), keys.ROBUST_ACCURACY)
ORDINARY = keys.attack_key("ordinary_pgd", keys.ROBUST_ACCURACY)
_FACTORS = (keys.CONFIDENCE_FACTOR, keys.GEOMETRY_FACTOR, keys.FEATURE_NORM, keys.WEIGHT_NORM)
_EVERYWHERE = (keys.RELATIVE_FLATNESS, keys.MEDIAN, *_FACTORS, OURS, ORDINARY)
_ACCURACY = ("val_accuracy",)
_LOSSES = ("train_loss", "val_loss")
_SIGNS = ("masking/zero_gradient_rate", "masking/loss_gap", "masking/temperature_gap", keys.ALARM)


class Case(NamedTuple):
    """One training, and what is drawn of it beside flatness and robust accuracy."""

    title: str
    build: Callable[[], LightningModule]
    drawn: Sequence[str]
    epochs_factor: int = 1


def without_dropout() -> DigitClassifier:
    """The digit classifier with nothing that keeps it from becoming confident."""
    module = DigitClassifier()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


CASES = {
    "healthy": Case("Healthy", DigitClassifier, _ACCURACY),
    "overconfident": Case("Overconfident: four times as long, no dropout", without_dropout, _LOSSES, epochs_factor=4),
    "masked": Case("Masked: head times 50 in every validation", ConfidentDigitClassifier, _SIGNS),
    "adversarial": Case("Adversarially trained", lambda: AdversarialDigitClassifier(epsilon=EPSILON), _ACCURACY),
}
"""Name of the picture → its training."""

TABLE = {
    keys.RELATIVE_FLATNESS: "κ, mean",
    keys.MEDIAN: "κ, median",
    keys.WRONG: "κ of wrong answers, mean",
    keys.CONFIDENCE_FACTOR: "confidence factor",
    keys.GEOMETRY_FACTOR: "geometry factor",
    keys.FEATURE_NORM: "feature norm",
    keys.WEIGHT_NORM: "weight norm",
    "train_loss": "training loss, nats",
    "val_loss": "validation loss, nats",
    "val_accuracy": "validation accuracy",
    ORDINARY: "robust accuracy, ordinary PGD",
    OURS: "robust accuracy, our attack",
    f"{OURS}_low": "… its 95 % interval from",
    f"{OURS}_high": "… to",
    "masking/zero_gradient_rate": "gradients that are exactly 0",
    "masking/temperature_gap": "temperature gap",
    keys.ALARM: "alarm",
}
"""Key → what the table calls it."""


def train(module: LightningModule, folder: Path, epochs: int) -> list[Row]:
    """Train with flatness and attacks measured; return one row per epoch.

    Args:
        module: the network.
        folder: where the CSV log is written.
        epochs: number of epochs; the attacks run in about ten of them.
    """
    every_n_epochs = max(1, epochs // 10)
    attack = AttackMonitor(
        epsilon=EPSILON,
        attacks={"ordinary_pgd": {"attack": "PGD", "steps": 10}},
        max_samples=ATTACKED_SAMPLES,
        every_n_epochs=every_n_epochs,
        masking_every_n=9,
        summary=False,
    )
    trainer = Trainer(
        max_epochs=epochs,
        logger=CSVLogger(folder.parent, name="", version=folder.name),
        callbacks=[RelativeFlatnessMonitor(summary=False), attack],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, MNISTDigits())
    return read_epochs(folder / "metrics.csv")


def draw(case: Case, epochs: Sequence[Row], path: Path) -> None:
    """Draw the curves of one training as ``lightning-flatness fit`` draws them, those of the case only.

    Args:
        case: what is drawn.
        epochs: one row per epoch.
        path: of the picture.
    """
    names = {"epoch", *_EVERYWHERE, *case.drawn}
    with matplotlib.style.context("tableau-colorblind10"):
        figure = curves_figure([{name: row[name] for name in names & row.keys()} for row in epochs])
        figure.set_size_inches(8, 7.2)
        figure.suptitle(f"{case.title} (attacks: linf, ε = {EPSILON}, pixels in [0, 1])", fontsize=11)
        figure.savefig(path, dpi=110)


def table(logs: dict[str, list[Row]]) -> str:
    """First and last value of each quantity in each training, in Markdown.

    Args:
        logs: name of the training → one row per epoch.
    """
    lines = [f"| | {' | '.join(logs)} |", "|---" * (len(logs) + 1) + "|"]
    for name, label in {"epoch": "epoch", **TABLE}.items():
        cells = []
        for epochs in logs.values():
            values = [row[name] for row in epochs if name in row]
            cells.append(f"{_written(values[0])} → {_written(values[-1])}" if values else "–")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _written(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw and print.

    Args:
        arguments: by default those of the process.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=new_folder, default="logs/reading", help="where the logs are written")
    parser.add_argument("--pictures", type=Path, help="where pictures and table go, by default the same folder")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the shorter trainings")
    options = parser.parse_args(arguments)
    pictures = options.folder if options.pictures is None else options.pictures
    pictures.mkdir(parents=True, exist_ok=True)
    logs = {}
    for name, case in CASES.items():
        seed_everything(0, verbose=False)
        logs[name] = train(case.build(), options.folder / name, options.epochs * case.epochs_factor)
        draw(case, logs[name], pictures / f"curves_{name}.png")
    numbers = table(logs)
    (pictures / "curves.md").write_text(numbers, encoding="utf-8")
    print(numbers)  # noqa: T201 - the result


if __name__ == "__main__":
    main()
