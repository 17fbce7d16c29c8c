"""Read what Lightning's ``CSVLogger`` wrote."""

import csv
from pathlib import Path

Row = dict[str, float]


def read_epochs(path: Path) -> list[Row]:
    """Read a ``metrics.csv`` and put what was logged in one epoch into one row; the last value of a key counts.

    Args:
        path: the file.

    Returns:
        One row per epoch, in order; cells that are empty have no entry.
    """
    epochs: dict[int, Row] = {}
    with path.open(newline="") as file:
        for record in csv.DictReader(file):
            numbers = {name: float(text) for name, text in record.items() if text}
            epochs.setdefault(int(numbers.get("epoch", 0)), {}).update(numbers)
    return [epochs[epoch] for epoch in sorted(epochs)]
