"""What an error in a measurement costs: the training, or one point of the curves."""

from collections.abc import Iterator
from contextlib import contextmanager
from warnings import warn

from lightning.pytorch import Trainer

from lightning_flatness.callbacks._memory import free_memory_of, is_out_of_memory
from lightning_flatness.callbacks._step import Probe

_LESS_MEMORY = "; pass a smaller `max_samples`, or make the validation batches smaller"


class Tolerance:
    """Keeps errors of a monitor from ending the training where that is wanted, and says so once.

    Args:
        owner: name in the warning.
        probe: records nothing more of a measurement that has failed.

    Attributes:
        failed: whether the present measurement has.
    """

    def __init__(self, owner: str, probe: Probe) -> None:
        self.failed = False
        self._raises = True
        self._owner = owner
        self._probe = probe
        self._said: set[str] = set()

    def begin(self, *, raises: bool) -> None:
        """Start another measurement.

        Args:
            raises: whether its errors end the training.
        """
        self.failed = False
        self._raises = raises

    @contextmanager
    def tolerate(
        self,
        trainer: Trainer,
        cost: str = "leaves out that point",
        *,
        is_extra: bool = False,
        spares_memory: bool = True,
    ) -> Iterator[None]:
        """Let an error inside cost one point of the curves where that is wanted.

        Args:
            trainer: that goes on.
            cost: what is lost.
            is_extra: no value of a curve is lost, which is worth no training, whatever is wanted.
            spares_memory: nor is a value for which memory does not suffice.
        """
        try:
            yield
        except Exception as error:
            self._probe.stop()
            lacks_memory = spares_memory and is_out_of_memory(error)
            if self._raises and not (is_extra or lacks_memory):
                raise
            self.failed = True
            self._say(trainer, error, cost, _LESS_MEMORY if lacks_memory else "")
            if lacks_memory:
                free_memory_of(error)

    def _say(self, trainer: Trainer, error: Exception, cost: str, remedy: str) -> None:
        if cost + remedy not in self._said:
            self._said.add(cost + remedy)
            notes = "".join(f" {note}" for note in getattr(error, "__notes__", []))
            warn(
                f"{self._owner} failed in epoch {trainer.current_epoch} and {cost}: "
                f"{type(error).__name__}: {error}{notes}{remedy} (said once; later points may be missing too)",
                stacklevel=2,
            )
