"""How many samples fit into a share of the time that training takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

_PILOT_SAMPLES = 16
"""Samples of the first measurement, when no cost is known yet."""


class TimeBudget:
    """Seconds that may be spent between two evaluations, and samples that fit into them.

    Args:
        fraction: share of the time since the evaluation before.

    Raises:
        ValueError: if the fraction is not in (0, 1].
    """

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"`max_time_fraction` must be in (0, 1] or None, got {fraction}.")
        self.fraction = fraction
        self._since: float | None = None
        self._left = 0.0
        self._seconds_per_sample: float | None = None

    def start_clock(self) -> None:
        """Count the time of training from now on."""
        self._since = perf_counter()

    def stop_clock(self) -> None:
        """Forget the time of training: without one there is no limit."""
        self._since = None

    def begin(self) -> None:
        """Fix what may be spent in the evaluation that starts now."""
        self._left = self.fraction * (perf_counter() - self._since) if self._since is not None else float("inf")

    def fits(self, samples: int) -> int:
        """Number of samples, at most ``samples``, that can be attacked in what is left."""
        if self._left == float("inf"):
            return samples
        if self._seconds_per_sample is None:
            return min(samples, _PILOT_SAMPLES)
        return min(samples, max(0, int(self._left / self._seconds_per_sample)))

    @contextmanager
    def spend(self, samples: int) -> Iterator[None]:
        """Subtract the time of what runs inside, and learn what a sample costs."""
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self._left -= seconds
        self._seconds_per_sample = seconds / samples
