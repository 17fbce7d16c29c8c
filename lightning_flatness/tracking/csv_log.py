"""Read what Lightning's ``CSVLogger`` wrote."""

import csv
from pathlib import Path

Row = dict[str, float]


def read_epochs(path: Path) -> list[Row]:
    """Read a ``metrics.csv`` and put what was logged in one epoch into one row; the last value of a key counts.

    Args:
        path: the file.

    Returns:
        One row per epoch, in order; cells that are empty have no entry. What was logged by step alone belongs to the
        epoch logged next.
    """
    epochs: dict[int, Row] = {}
    waiting: Row = {}
    with path.open(newline="") as file:
        for record in csv.DictReader(file):
            waiting |= {name: float(text) for name, text in record.items() if text}
            if "epoch" in waiting:
                epochs.setdefault(int(waiting["epoch"]), {}).update(waiting)
                waiting = {}
    if waiting:
        epochs.setdefault(max(epochs, default=0), {"epoch": 0.0}).update(waiting)
    return [epochs[epoch] for epoch in sorted(epochs)]
