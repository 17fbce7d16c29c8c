"""Runs of Lightning's ``CSVLogger``."""

from pathlib import Path

from lightning_flatness.tracking.csv_log import read_csv_log
from lightning_flatness.tracking.runs._config import Configuration, read_yaml
from lightning_flatness.tracking.runs.run import Run

METRICS_FILE = "metrics.csv"
_CONFIG_FILES = ("config.yaml", "hparams.yaml")


def read_csv_run(metrics_file: Path, name: str) -> Run:
    """Read what the logger wrote, and the settings that it and ``LightningCLI`` keep beside.

    Args:
        metrics_file: ``metrics.csv``.
        name: of the run.
    """
    log = read_csv_log(metrics_file)
    settings = _settings(metrics_file.parent)
    notes = [*log.notes, *settings.notes, *([] if log.epochs else [f"{METRICS_FILE} holds no values."])]
    return Run(name, str(metrics_file.parent), log.epochs, config=settings.values, notes=notes)


def _settings(folder: Path) -> Configuration:
    found = [read_yaml(path) for name in _CONFIG_FILES if (path := folder / name).is_file()]
    return Configuration(
        {name: value for part in found for name, value in part.values.items()},
        [note for part in found for note in part.notes],
    )
