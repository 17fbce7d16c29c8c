"""Five runs of one network on 5,000 MNIST digits, side by side in one page.

Run it with ``uv run python -m examples.compare_runs --folder logs/compare`` and open ``logs/compare/report.html``.

Four networks are trained: in the ordinary way, with weight decay, with smooth labels, and on adversarial examples. The
fifth run is the first once more, but for every validation its head is multiplied by 50. That changes no decision, so
that it is exactly as robust as the first; yet the curve of an ordinary attack, PGD on the cross-entropy, is near the
top.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from examples.adversarial_training import AdversarialDigitClassifier
from examples.local_sweep import new_folder
from examples.mnist import DigitClassifier, MNISTDigits
from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.commands import compare

EPSILON = 0.2


class ConfidentDigitClassifier(DigitClassifier):
    """The digit classifier, whose head is multiplied by a number during every validation; training is what it was.

    Args:
        head_scale: that number.
    """

    def __init__(self, head_scale: float = 50.0) -> None:
        super().__init__()
        self.head_scale = head_scale

    @override
    def on_validation_start(self) -> None:
        self._trained_head = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.head.load_state_dict({name: value * self.head_scale for name, value in self._trained_head.items()})

    @override
    def on_validation_end(self) -> None:
        self.head.load_state_dict(self._trained_head)


RUNS: dict[str, Callable[[], LightningModule]] = {
    "plain": DigitClassifier,
    "weight decay": lambda: DigitClassifier(weight_decay=1e-3),
    "label smoothing": lambda: DigitClassifier(label_smoothing=0.1),
    "adversarially trained": lambda: AdversarialDigitClassifier(epsilon=EPSILON),
    "head x50": ConfidentDigitClassifier,
}
"""Name of the run → its network."""


def train(name: str, module: LightningModule, folder: Path, epochs: int) -> None:
    """Train with every monitor on; what is logged is in ``folder / name``.

    Args:
        name: of the run.
        module: the network.
        folder: of all runs.
        epochs: number of epochs.
    """
    monitors = [
        RelativeFlatnessMonitor(),
        AttackMonitor(epsilon=EPSILON, attacks={"PGD": {"steps": 10}}, max_samples=200),
        LocalRobustnessMonitor(epsilon=EPSILON, lipschitz_samples=32),
        AttackTrajectoryMonitor(epsilon=EPSILON),
        HeadScalingMonitor(epsilon=EPSILON, every_n_epochs=epochs),
    ]
    trainer = Trainer(
        max_epochs=epochs,
        logger=CSVLogger(folder, name="", version=name),
        callbacks=monitors,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, MNISTDigits())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the five runs and write the page that compares them.

    Args:
        arguments: by default those of the process.
    """
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=new_folder, default="logs/compare", help="where runs and page are written")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of each run")
    options = parser.parse_args(arguments)
    for name, build in RUNS.items():
        seed_everything(0, verbose=False)
        train(name, build(), options.folder, options.epochs)
    compare.main([str(options.folder), "--output", str(options.folder / "report.html")])


if __name__ == "__main__":
    main()
