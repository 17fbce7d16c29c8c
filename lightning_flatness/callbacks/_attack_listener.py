"""How other callbacks learn what an attack monitor has done."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning_flatness.attacks import AttackResult
from lightning_flatness.callbacks._head_monitor import Observation
from lightning_flatness.callbacks._step import Step


class AttackListener(ABC):
    """A callback that every attack monitor of its trainer tells about each batch it has attacked."""

    @abstractmethod
    def on_attacked(self, step: Step, results: Mapping[str, AttackResult]) -> None:
        """Take in what attacks have done to the leading samples of a batch.

        Args:
            step: that the batch was evaluated in.
            results: by the label of the attack.
        """


class LatestBatch:
    """Brings together what was observed of a batch and how it was attacked, whichever comes first; keeps one batch."""

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None
        self._observation: Observation | None = None
        self._results: list[Mapping[str, AttackResult]] = []

    def observed(self, observation: Observation) -> list[Mapping[str, AttackResult]]:
        """Keep an observation, and return the attacks on its batch so far."""
        self._go_to(observation.step)
        self._observation = observation
        results, self._results = self._results, []
        return results

    def attacked(self, step: Step, results: Mapping[str, AttackResult]) -> Observation | None:
        """Return the observation of an attacked batch; where there is none yet, keep the attacks."""
        self._go_to(step)
        if self._observation is None:
            self._results.append(results)
        return self._observation

    @property
    def is_attacked(self) -> bool:
        """Whether attacks wait for the observation of their batch."""
        return bool(self._results)

    def forget(self) -> None:
        """Drop the batch."""
        self._place, self._observation, self._results = None, None, []

    def _go_to(self, step: Step) -> None:
        place = step.dataloader_idx, step.batch_idx
        if place != self._place:
            self.forget()
            self._place = place
