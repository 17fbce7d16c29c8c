"""What was logged in one epoch, put into one row."""

from collections.abc import Mapping
from math import isfinite

Row = dict[str, float]


class EpochRows:
    """Rows in the order in which they were logged, becoming one row per epoch; the last value of a key counts.

    What was logged by step alone belongs to the epoch logged next. If none follows, it stands in the last one as far as
    that has no values of its own.
    """

    def __init__(self) -> None:
        self._epochs: dict[int, Row] = {}
        self._waiting: Row = {}

    def add(self, row: Mapping[str, float]) -> None:
        """Take another row."""
        self._waiting |= row
        epoch = self._waiting.get("epoch")
        if epoch is not None and isfinite(epoch):
            self._epochs.setdefault(int(epoch), {}).update(self._waiting)
            self._waiting = {}

    def in_order(self) -> list[Row]:
        """One row per epoch, in order of their number."""
        epochs = {epoch: dict(row) for epoch, row in self._epochs.items()}
        if self._waiting:
            last = epochs.setdefault(max(epochs, default=0), {"epoch": 0.0})
            for name, value in self._waiting.items():
                last.setdefault(name, value)
        return [epochs[epoch] for epoch in sorted(epochs)]
