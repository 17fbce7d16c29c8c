"""What all benchmarks share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from .measuring import print_table

Report = Callable[..., None]


@pytest.fixture(autouse=True)
def _steady(unchecked_shapes: AbstractContextManager[None]) -> Iterator[None]:
    """One thread, since threads that wait for each other on a busy machine are not what is measured; no checks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with unchecked_shapes:
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """Collect the rows of a module's table, and print it at the end."""
    rows: list[tuple[str, ...]] = []
    yield lambda *cells: rows.append(cells)
    if rows:
        print_table(request.module.TITLE, request.module.COLUMNS, rows)
