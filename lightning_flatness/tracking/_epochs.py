"""What was logged in one epoch, put into one row."""

from collections.abc import Mapping
from math import isfinite

from lightning_flatness.tracking import keys

Row = dict[str, float]


class EpochRows:
    """Rows in the order in which they were logged, becoming one row per epoch; the last value of a key counts.

    What was logged by step alone belongs to the epoch logged next. If none follows, it stands in the last one as far as
    that has no values of its own.
    """

    def __init__(self) -> None:
        self._epochs: dict[int, Row] = {}
        self._waiting: Row = {}
        self._again = 0

    def add(self, row: Mapping[str, float]) -> None:
        """Take another row."""
        self._waiting |= row
        epoch = self._waiting.get("epoch")
        if epoch is not None and isfinite(epoch):
            there = self._epochs.setdefault(int(epoch), {})
            self._again += any(name in there and name.split("/")[0] in keys.GROUPS for name in self._waiting)
            there.update(self._waiting)
            self._waiting = {}

    def notes(self) -> list[str]:
        """What the rows leave out, in sentences."""
        if not self._again:
            return []
        return [f"{self._again} more validations of an epoch were left out: the last one of each epoch counts."]

    def in_order(self) -> list[Row]:
        """One row per epoch, in order of their number."""
        epochs = {epoch: dict(row) for epoch, row in self._epochs.items()}
        if self._waiting:
            last = epochs.setdefault(max(epochs, default=0), {"epoch": 0.0})
            for name, value in self._waiting.items():
                last.setdefault(name, value)
        return [epochs[epoch] for epoch in sorted(epochs)]
