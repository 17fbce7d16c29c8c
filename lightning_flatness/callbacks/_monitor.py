"""What every monitor does: watch the validation, measure when due, log, remember, and keep out of the way."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from warnings import warn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_flatness.callbacks._observe import (
    HeadCall,
    HeadProbe,
    InputsAndTargets,
    batch_length,
    dataloader_list,
    default_inputs_and_targets,
    join_calls,
    leading_samples,
    own_samples,
    plain_tensors,
)
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.wandb_run import define_metrics, record_config, wandb_runs

OnError = Literal["raise", "warn"]
_LARGEST_LOGGED = torch.finfo(torch.float32).max


class Observation(NamedTuple):
    """One batch as the module saw it, without the samples that do not count."""

    head: HeadCall
    target: Tensor | None
    dataloader_idx: int


class Monitor(Callback, ABC):
    """Base of the monitors: hooks in, observations to the subclass, values out to logger and history.

    Args:
        group: first part of the log keys.
        head: see the subclasses.
        inputs_and_targets: see the subclasses.
        every_n_epochs: see the subclasses.
        max_samples: see the subclasses.
        dataloaders: see the subclasses.
        seed: see the subclasses.
        on_error: see the subclasses.
        prog_bar_key: key shown in the progress bar, or None.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        group: str,
        head: nn.Module | str | None,
        inputs_and_targets: InputsAndTargets | None,
        every_n_epochs: int,
        max_samples: int | None,
        dataloaders: Sequence[int] | None,
        seed: int,
        on_error: OnError,
        prog_bar_key: str | None,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be >= 1, got {every_n_epochs}.")
        if max_samples is not None and not (isinstance(max_samples, int) and max_samples >= 1):
            raise ValueError(f"`max_samples` must be an integer >= 1 or None, got {max_samples}.")
        if on_error not in {"raise", "warn"}:
            raise ValueError(f"`on_error` must be 'raise' or 'warn', got {on_error!r}.")
        self.group = group
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.dataloaders = dataloaders
        self.seed = seed
        self.on_error = on_error
        self._inputs_and_targets = inputs_and_targets or default_inputs_and_targets
        self._probe = HeadProbe(head)
        self._prog_bar_key = prog_bar_key
        self._history: list[dict[str, Any]] = []
        self._last_epoch: int | None = None
        self._defined: set[str] = set()
        self._warned = False
        self._measuring = self._failed = False
        self._room: dict[int, int | None] = {}
        self._num_dataloaders = 1
        self._restores = True
        self._said_head: str | None = None

    # What a subclass provides.

    @abstractmethod
    def _begin(self, dataloader_indices: Sequence[int], device: torch.device) -> None:
        """Forget the last epoch."""

    @abstractmethod
    def _observe(self, observation: Observation) -> None:
        """Take in one batch."""

    @abstractmethod
    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        """Reduce over processes and return the values under their plain keys."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return what is measured and how, in plain types, for the run's configuration."""

    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        """Send what is no scalar to a Weights & Biases run."""

    # What users of a monitor call.

    def history(self) -> list[dict[str, Any]]:
        """Return one row per measured validation: ``stage``, ``epoch``, ``step`` and every logged key.

        Rows survive checkpoints.
        """
        return [dict(row) for row in self._history]

    @property
    def head_name(self) -> str | None:
        """Dotted name of the head, None before it is known."""
        return self._probe.name

    # Lightning's hooks.

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints; no two monitors of a trainer have the same group."""
        return self._generate_state_key(group=self.group)

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the schedule's position."""
        return {"history": self.history(), "last_epoch": self._last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; evaluating a checkpoint leaves the history as it is."""
        if not self._restores:
            return
        self._history = [dict(row) for row in state_dict["history"]]
        self._last_epoch = state_dict["last_epoch"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get ready for another run."""
        del trainer, pl_module
        self._defined.clear()
        self._restores = stage == TrainerFn.FITTING

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the head, before anything is compiled or run."""
        del trainer
        self._probe.attach(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a validation to watch."""
        del pl_module
        if not trainer.enable_validation:
            rank_zero_warn(f"{type(self).__name__} measures nothing: this fit has no validation.")
        elif trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0:
            raise ValueError(f"The validation dataloader is empty; {type(self).__name__} has nothing to measure.")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure if this validation is due."""
        self._start(trainer, pl_module, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure."""
        self._start(trainer, pl_module, trainer.test_dataloaders)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the head while the module's step runs."""
        del trainer, pl_module, batch, batch_idx
        if self._measuring and not self._failed and self._room.get(dataloader_idx, 0) != 0:
            self._probe.open()

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure what the head saw."""
        del pl_module, outputs, batch_idx
        if self._probe.is_open:
            with self._tolerate(trainer), plain_tensors():
                self._measure(batch, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log before checkpoints and early stopping look."""
        if self._measuring:
            self._measuring = False
            with self._tolerate(trainer), plain_tensors():
                self._finish(trainer, pl_module)

    on_test_epoch_end = on_validation_epoch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, stage
        self._probe.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, exception
        self._probe.detach()

    # The parts of a measurement.

    def _start(self, trainer: Trainer, pl_module: LightningModule, dataloaders: Any) -> None:
        self._measuring = self._is_due(trainer)
        self._failed = False
        if not self._measuring:
            return
        self._probe.attach(pl_module)
        loaders = dataloader_list(dataloaders)
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        if len(batches) != len(loaders):  # combined to one
            loaders = loaders[:1] if len(loaders) == 1 else [None] * len(batches)
        self._num_dataloaders = len(loaders)
        chosen = range(len(loaders)) if self.dataloaders is None else self.dataloaders
        if not all(0 <= index < len(loaders) for index in chosen):
            raise ValueError(f"`dataloaders` must be in [0, {len(loaders)}), got {list(chosen)}.")
        self._room = {index: self._own_share(trainer, loaders[index]) for index in chosen}
        with plain_tensors():
            self._begin(list(chosen), pl_module.device)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self._last_epoch is None:
            return True
        return not 0 < trainer.current_epoch - self._last_epoch < self.every_n_epochs

    def _own_share(self, trainer: Trainer, dataloader: Any) -> int | None:
        """Most leading samples that this process measures; None for all."""
        shares = [own_samples(dataloader)]
        if self.max_samples is not None:
            shares.append((self.max_samples + trainer.world_size - 1 - trainer.global_rank) // trainer.world_size)
        return min((share for share in shares if share is not None), default=None)

    def _measure(self, batch: Any, dataloader_idx: int) -> None:
        inputs, target = self._inputs_and_targets(batch)
        if not (target is None or isinstance(target, Tensor)):
            raise ValueError(
                f"The targets must be a tensor or None, got {type(target).__name__}; "
                "pass `inputs_and_targets=` a function that picks them."
            )
        calls = self._probe.close()
        self._say_head(calls[-1])
        room = self._room[dataloader_idx]
        if room is not None:
            samples = batch_length(inputs) or len(calls[0].logits)
            if samples > room:
                calls, target = leading_samples(calls, target, samples, room)
            self._room[dataloader_idx] = room - min(samples, room)
        call, target = join_calls(calls, target)
        self._observe(Observation(call, target, dataloader_idx))

    def _say_head(self, call: HeadCall) -> None:
        if self._said_head != self.head_name:
            self._said_head = self.head_name
            outputs, inputs = call.weight.shape
            rank_zero_info(
                f"{type(self).__name__} measures the head {self.head_name!r}, nn.Linear({inputs}, {outputs})."
            )

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.reduce_boolean_decision(not self._failed, all=True):
            return
        row: dict[str, Any] = {
            "stage": trainer.state.fn.value if trainer.state.fn else "",
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
        }
        for index in self._room:
            values = {self._full_key(key, trainer, index): float(value) for key, value in self._values(index).items()}
            # Lightning logs in float32.
            finite = {name: value for name, value in values.items() if abs(value) <= _LARGEST_LOGGED}
            self._log(trainer, pl_module, finite)
            if not trainer.sanity_checking:
                self._inform_wandb(trainer, list(finite), index)
            row.update(finite)
        if trainer.sanity_checking:
            return
        self._history.append(row)
        if trainer.state.fn == TrainerFn.FITTING:
            self._last_epoch = trainer.current_epoch

    def _log(self, trainer: Trainer, pl_module: LightningModule, values: Mapping[str, float]) -> None:
        shown = None if self._prog_bar_key is None else self._full_key(self._prog_bar_key, trainer, 0)
        for name, value in values.items():
            # All processes hold the same value; the largest of equal numbers is exact where their mean is not.
            pl_module.log(
                name,
                value,
                prog_bar=name == shown,
                on_epoch=True,
                sync_dist=trainer.world_size > 1,
                reduce_fx="max",
                add_dataloader_idx=False,
            )

    def _inform_wandb(self, trainer: Trainer, names: Sequence[str], dataloader_idx: int) -> None:
        for run in wandb_runs(trainer):
            new = [name for name in names if name not in self._defined]
            if new:
                define_metrics(run, new)
                record_config(run, f"{self.group}_monitor", {**self._settings(), "head": self.head_name})
            self._log_media(run, trainer, dataloader_idx)
        self._defined.update(names)

    def _full_key(self, key: str, trainer: Trainer, dataloader_idx: int) -> str:
        return keys.full_key(
            key,
            group=self.group,
            testing=trainer.testing,
            dataloader_idx=dataloader_idx,
            num_dataloaders=self._num_dataloaders,
        )

    @contextmanager
    def _tolerate(self, trainer: Trainer) -> Iterator[None]:
        """Let an error cost one point of the curves where the user asked for that, and say so once."""
        try:
            yield
        except Exception as error:
            self._probe.stop()
            if self.on_error == "raise" or trainer.sanity_checking:
                raise
            self._failed = True
            if not self._warned:
                self._warned = True
                warn(
                    f"{type(self).__name__} failed in epoch {trainer.current_epoch} and leaves out that point: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )
