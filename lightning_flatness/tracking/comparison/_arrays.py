"""Numbers as they go into the page: exact, each array once, fewer of them only where the page would be too large."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_flatness.tracking.comparison._curves import Curve

_FEWEST_BUCKETS = 8
_BYTES_OF_A_POINT = 4 / 3 * 8


@dataclass
class Arrays:
    """Arrays as base64 of little-endian float64; equal ones are kept once."""

    texts: dict[str, int] = field(default_factory=dict)

    def place(self, values: Sequence[float]) -> int:
        """Number of the array, which is added if it is new."""
        text = b64encode(np.asarray(values, dtype="<f8").tobytes()).decode("ascii")
        return self.texts.setdefault(text, len(self.texts))


def buckets_within(curves: Sequence[Curve], most_bytes: int) -> int | None:
    """Into how many buckets the points of a curve have to be put so that all of them fit; None where they fit as is."""
    lengths = np.array([len(values) for _, values in curves], dtype=np.float64)
    positions = {tuple(places) for places, _ in curves}
    most_points = most_bytes / _BYTES_OF_A_POINT
    if lengths.sum() + sum(map(len, positions)) <= most_points:
        return None
    buckets = _FEWEST_BUCKETS
    # a curve that is thinned has positions of its own, hence twice
    while 2 * np.minimum(lengths, _kept(buckets + 1)).sum() <= most_points:
        buckets += 1
    return buckets


def thinned(curve: Curve, buckets: int | None) -> Curve:
    """Smallest, largest and first undefined value of every bucket, and the first and the last point.

    Example:
        >>> thinned(([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0, 3.0, 1.0, 9.0, 5.0, 6.0, 4.0, 7.0]), 1)
        ([0.0, 3.0, 7.0], [0.0, 9.0, 7.0])
    """
    positions, values = curve
    if buckets is None or len(values) <= _kept(buckets):
        return curve
    chosen = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), buckets):
        chosen |= _extremes(np.asarray(values, dtype=np.float64), bucket)
    places = sorted(chosen)
    return [positions[place] for place in places], [values[place] for place in places]


def _kept(buckets: int) -> int:
    return 3 * buckets + 2


def _extremes(values: NDArray[np.float64], bucket: NDArray[np.intp]) -> set[int]:
    finite = np.isfinite(values[bucket])
    undefined, known = bucket[~finite], bucket[finite]
    found = {int(undefined[0])} if undefined.size else set()
    if known.size:
        found |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
    return found
