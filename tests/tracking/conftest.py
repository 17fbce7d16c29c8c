from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wandb_reader import RecordedRun, read_run


@pytest.fixture(scope="session")
def read_wandb() -> Callable[[Path], RecordedRun]:
    """Read the only offline run below a folder: its history, summary, configuration and metric definitions."""
    return read_run
