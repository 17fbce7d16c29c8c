from collections.abc import Sequence

import pytest

from lightning_flatness.tracking.comparison.page import comparison_page
from lightning_flatness.tracking.runs import Run
from tests.tracking.comparison.made_runs import many_runs


@pytest.fixture(scope="session")
def hundred() -> tuple[Sequence[Run], str]:
    """100 runs of 200 epochs and 40 keys, and their page."""
    runs = many_runs(100, 200, 40)
    return runs, comparison_page(runs)
