"""How many samples fit into a share of the time that training takes."""

from math import inf
from time import perf_counter

_FEWEST_SAMPLES = 16
"""Attacked in every evaluation, however long they take."""


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
        self._attacked = 0
        self._seconds_per_sample: float | None = None

    def start_clock(self) -> None:
        """Count the time of training from now on."""
        self._since = perf_counter()

    def begin(self, *, limited: bool) -> None:
        """Fix what may be spent in the evaluation that starts now: everything where no training is held up."""
        self._attacked = 0
        self._left = self.fraction * (perf_counter() - self._since) if limited and self._since is not None else inf

    @property
    def is_too_small(self) -> bool:
        """Whether even the fewest samples took more than was to be spent."""
        return self._left < 0 and self._attacked <= _FEWEST_SAMPLES

    def fits(self, samples: int) -> int:
        """Number of samples, at most ``samples``, that can be attacked in what is left."""
        if self._left == inf:
            return samples
        affordable = 0 if self._seconds_per_sample is None else int(self._left / self._seconds_per_sample)
        return min(samples, max(affordable, _FEWEST_SAMPLES - self._attacked, 0))

    def spend(self, seconds: float, samples: int) -> None:
        """Subtract what an attack has taken, and learn what a sample costs."""
        self._attacked += samples
        self._left -= seconds
        self._seconds_per_sample = seconds / samples
