"""Runs read back from what loggers have left."""

from lightning_flatness.tracking.runs.run import Run as Run

__all__ = ["Run"]
