"""A few of many rows."""

from collections.abc import Sequence
from typing import TypeVar

RowT = TypeVar("RowT")


def evenly_chosen(rows: Sequence[RowT], most: int) -> list[RowT]:
    """At most that many rows, evenly spaced, with the first and the last.

    Args:
        rows: in order.
        most: at least 2.

    Example:
        >>> evenly_chosen([0, 1, 2, 3, 4, 5], 3)
        [0, 2, 5]
    """
    count = min(len(rows), most)
    return [rows[round(place * (len(rows) - 1) / max(1, count - 1))] for place in range(count)]
