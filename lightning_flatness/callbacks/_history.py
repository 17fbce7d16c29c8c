"""What was measured when, and from that, what is due."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def stage_of(trainer: Trainer) -> str:
    """Name of what a trainer does: ``"fit"`` or ``"validate"``, for example."""
    return trainer.state.fn.value if trainer.state.fn else ""


class History:
    """Rows of values, one per measured validation, which checkpoints keep.

    Attributes:
        restores: whether the present run goes on from checkpoints; evaluating one leaves the history as it is.
    """

    def __init__(self) -> None:
        self.restores = True
        self._rows: list[dict[str, Any]] = []
        self._fit_begins = 0
        self._last_epoch: int | None = None

    def setup(self, stage: str) -> None:
        """Get ready for another run."""
        self.restores = stage == TrainerFn.FITTING
        self._fit_begins = len(self._rows)

    def is_due(self, trainer: Trainer, every_n_epochs: int) -> bool:
        """Whether the evaluation that starts now is to be measured."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self._last_epoch is None:
            return True
        return not 0 < trainer.current_epoch - self._last_epoch < every_n_epochs

    def add(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Keep the values of one measurement."""
        where = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self._rows.append({"stage": stage_of(trainer), **where, **values})
        if trainer.state.fn == TrainerFn.FITTING:
            self._last_epoch = trainer.current_epoch

    def rows(self) -> list[dict[str, Any]]:
        """Return copies of all rows."""
        return [dict(row) for row in self._rows]

    def rows_of_fit(self) -> list[dict[str, Any]]:
        """Return the rows of the last fit and of the one that it went on from."""
        return self.rows()[self._fit_begins :]

    def rows_of_stage(self, stage: str) -> list[dict[str, Any]]:
        """Return the rows of all fits, or of all validations."""
        return [row for row in self.rows() if row["stage"] == stage]

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the schedule's position."""
        return {"history": self.rows(), "last_epoch": self._last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken, where the present run does."""
        if self.restores:
            self._rows = [dict(row) for row in state_dict["history"]]
            self._fit_begins = 0
            self._last_epoch = state_dict["last_epoch"]
