"""Runs that real loggers have kept, and how to read them back."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_flatness import AttackMonitor, RelativeFlatnessMonitor
from tests.callbacks.conftest import Net, fit
from tests.wandb_reader import RecordedRun, read_run

EPOCHS = 4


class Steep(Net):
    """Its logits are so far apart that gradients vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 8, "optimizer": {"lr": 0.05, "betas": [0.9, 0.999]}, "label": None})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 1e4 * super().forward(inputs)


class Kept(NamedTuple):
    """A fit, as each logger kept it."""

    place: Path
    csv: Path
    wandb: Path
    recorded: RecordedRun
    reasons: list[str]


@pytest.fixture(scope="session")
def read_wandb() -> Callable[[Path], RecordedRun]:
    """Read the only offline run below a folder: its history, summary, configuration and metric definitions."""
    return read_run


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A short fit with masked gradients, kept by both loggers."""
    place = tmp_path_factory.mktemp("kept")
    attack = AttackMonitor(epsilon=0.5, lower=None, upper=None, head=None, masking_samples=20)
    loggers = [CSVLogger(place), WandbLogger(save_dir=place, offline=True, name="steep", project="p")]
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        with pytest.warns(UserWarning, match="masked gradients"):
            fit(Steep(), RelativeFlatnessMonitor(head="head"), attack, logger=loggers, max_epochs=EPOCHS)
        wandb.finish()
    (file,) = {path.resolve() for path in place.rglob("*.wandb")}
    recorded = read_run(file)
    return Kept(place, Path(loggers[0].log_dir), file, recorded, recorded.summary["masking/reasons"])


@pytest.fixture(scope="session")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several blocks, with a record that is longer than one."""
    place = tmp_path_factory.mktemp("long")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        logger = WandbLogger(save_dir=place, offline=True)
        for epoch in range(60):
            logger.log_metrics({f"value_{key}": epoch / (key + 3) for key in range(12)} | {"epoch": epoch}, step=epoch)
        logger.experiment.summary["long"] = "word " * 20_000
        wandb.finish()
    (file,) = {path.resolve() for path in place.rglob("*.wandb")}
    read_run(file)  # waits for its end
    return file
