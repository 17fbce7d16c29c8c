"""How many samples can be attacked for a share of the passes that training makes."""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor

from lightning_flatness.attacks import LogitsFunction

_PASSES_OF_TRAINING = 3
"""Forward, and backward to the activations and to the weights; an attack needs no gradient of the weights."""
_CALL = 32
"""What a call costs beside its samples, in samples: attacks run on what is left of a batch, and few are slow."""
_INSTALMENTS = 5
"""Evaluations over which what masking costs is paid, so that its expensive rules do not take the samples of one."""


class PassBudget:
    """A running account of passes of samples through the model: training fills it, attacks empty it.

    Passes are counted rather than timed, so that two runs on as many processes attack the same samples, however
    busy the machine is.

    Args:
        fraction: share of the passes of training that is paid in.

    Raises:
        ValueError: if the fraction is neither in (0, 1] nor infinite.

    Attributes:
        is_limited: whether the present evaluation holds up training.
        passes: counted since the last payment.
    """

    def __init__(self, fraction: float) -> None:
        if not (0 < fraction <= 1 or fraction == inf):
            raise ValueError(f"`max_time_fraction` must be in (0, 1], None, or inf for no limit, got {fraction}.")
        self.fraction = fraction
        self.reset()

    def reset(self) -> None:
        """Begin with an empty account."""
        self.is_limited = False
        self.passes = 0
        self._income = 0.0
        self._owed = 0.0
        self._passes_per_sample: float | None = None
        self._fewest = 0
        self._left: dict[int, float] = {}
        self._attacked: dict[int, int] = {}

    def pay_in(self, samples: int) -> None:
        """Take note of samples that were trained on."""
        if self.fraction < inf:
            self._income += self.fraction * _PASSES_OF_TRAINING * samples

    def begin(self, dataloader_indices: Sequence[int], fewest: int, *, limited: bool) -> None:
        """Fix what may be spent in the evaluation that starts now, the same for each dataloader.

        Args:
            dataloader_indices: what is attacked.
            fewest: samples of each that are attacked whatever they cost.
            limited: whether training is held up; there is no limit elsewhere.
        """
        self.is_limited = limited and self.fraction < inf
        self._fewest = fewest
        self.passes = 0
        self._attacked = dict.fromkeys(dataloader_indices, 0)
        if self.is_limited:
            instalment = self._owed / _INSTALMENTS
            self._owed -= instalment
            available = max(self._debt(), -self._income) + self._income - instalment
            self._left = dict.fromkeys(dataloader_indices, available / len(dataloader_indices))
            self._income = 0.0

    def fits(self, samples: int, dataloader_idx: int) -> int:
        """Number of samples, at most ``samples``, that can be attacked for what is left.

        Args:
            samples: at hand.
            dataloader_idx: where they come from.
        """
        if not self.is_limited:
            return samples
        left, cost = self._left[dataloader_idx], self._passes_per_sample
        affordable = 0 if cost is None else int(left / cost)
        return min(samples, max(affordable, self._fewest - self._attacked[dataloader_idx], 0))

    def counted(self, logits_fn: LogitsFunction) -> LogitsFunction:
        """Return the same function, whose passes are counted: two where a gradient is recorded, one elsewhere.

        Args:
            logits_fn: maps inputs to logits.
        """

        def call(inputs: Tensor) -> Tensor:
            logits = logits_fn(inputs)
            self.passes += (len(inputs) + _CALL) * (2 if logits.requires_grad else 1)
            return logits

        return call

    def pay_attack(self, samples: int, dataloader_idx: int) -> None:
        """Subtract what was counted since the last payment, and learn what an attack on a sample costs.

        Args:
            samples: that were attacked, at least one.
            dataloader_idx: where they come from.
        """
        if self.is_limited:
            self._attacked[dataloader_idx] += samples
            self._left[dataloader_idx] -= self.passes
            self._passes_per_sample = max(self.passes / samples, 1.0)  # wrong samples are not attacked
        self.passes = 0

    def owe(self) -> None:
        """Put off to pay what was counted since the last payment."""
        if self.is_limited:
            self._owed += self.passes
        self.passes = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the account."""
        return {
            "income": self._income,
            "debt": self._debt(),
            "owed": self._owed,
            "passes_per_sample": self._passes_per_sample,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._income, self._owed = state_dict["income"], state_dict["owed"]
        self._passes_per_sample = state_dict["passes_per_sample"]
        self._left = {0: state_dict["debt"]}

    def _debt(self) -> float:
        return sum((min(left, 0.0) for left in self._left.values()), 0.0)
