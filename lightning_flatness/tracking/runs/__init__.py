"""Runs read back from what loggers have left."""

from lightning_flatness.tracking.runs.reading import read_runs as read_runs
from lightning_flatness.tracking.runs.run import Run as Run

__all__ = ["Run", "read_runs"]
