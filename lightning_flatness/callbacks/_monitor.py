"""What every monitor does: watch the validation, measure when due, log, remember, and keep out of the way."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from re import fullmatch
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_flatness.callbacks._batches import InputsAndTargets, default_inputs_and_targets
from lightning_flatness.callbacks._dataloaders import Selection
from lightning_flatness.callbacks._fit_summary import print_fit_summary
from lightning_flatness.callbacks._history import History
from lightning_flatness.callbacks._log import log_values, loggable
from lightning_flatness.callbacks._memory import Memory
from lightning_flatness.callbacks._module import undisturbed
from lightning_flatness.callbacks._observe import plain_tensors
from lightning_flatness.callbacks._sharding import check_strategy, is_sharded, unsharded, without_hooks
from lightning_flatness.callbacks._step import Probe, Step
from lightning_flatness.callbacks._tolerance import Tolerance
from lightning_flatness.functional._checks import check_counts
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.wandb_run import define_metrics, record_config, wandb_runs

OnError = Literal["raise", "warn"]


def _check_settings(group: str, max_samples: int | None, seed: int, on_error: str) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in [0, 2**32), got {seed}.")
    if max_samples is not None and not (isinstance(max_samples, int) and max_samples >= 1):
        raise ValueError(f"`max_samples` must be an integer >= 1 or None, got {max_samples}.")
    if on_error not in {"raise", "warn"}:
        raise ValueError(f"`on_error` must be 'raise' or 'warn', got {on_error!r}.")
    if not fullmatch(r"[a-z0-9_]+", group):
        raise ValueError(f"`group` must consist of a-z, 0-9 and _, got {group!r}; others cannot be sorted by.")


class Monitor(Callback, ABC):
    """Base of the monitors: hooks in, steps to the subclass, values out to logger and history.

    Args:
        probe: what looks at the module while its step runs.
        group: first part of the log keys.
        inputs_and_targets: see the subclasses.
        every_n_epochs: see the subclasses.
        max_samples: see the subclasses.
        dataloaders: see the subclasses.
        seed: see the subclasses.
        on_error: see the subclasses.
        summary: see the subclasses.
        prog_bar_key: key shown in the progress bar, or None.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        group: str,
        inputs_and_targets: InputsAndTargets | None,
        every_n_epochs: int,
        max_samples: int | None,
        dataloaders: Sequence[int] | None,
        seed: int,
        on_error: OnError,
        summary: bool,
        prog_bar_key: str | None,
    ) -> None:
        super().__init__()
        check_counts(every_n_epochs=every_n_epochs)
        _check_settings(group, max_samples, seed, on_error)
        self.group = group
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.dataloaders = dataloaders
        self.seed = seed
        self.on_error = on_error
        self.summary = summary
        self._inputs_and_targets = inputs_and_targets or default_inputs_and_targets
        self._probe = probe
        self._prog_bar_key = prog_bar_key
        self._history = History()
        self._defined: set[str] = set()
        self._memory = Memory(type(self).__name__)
        self._tolerance = Tolerance(type(self).__name__, probe)
        self._selection = Selection()
        self._measuring = self._is_sharded = False

    # What a subclass provides.

    @abstractmethod
    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        """Forget the last epoch."""

    @abstractmethod
    def _measure(self, step: Step) -> None:
        """Take in one step; ``_selection`` says how much of it counts."""

    @abstractmethod
    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        """Whether ``_measure`` of the batch at hand, or a listener told of it, runs parts of the module again.

        Each process answers for its own batch. Asked while the probe is open; what it says no to must not run.
        """

    @abstractmethod
    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        """Reduce over processes and return the values under their plain keys."""

    def _settings(self) -> dict[str, Any]:
        """Return what is measured and how, in plain types, for the run's configuration."""
        return {
            "every_n_epochs": self.every_n_epochs,
            "max_samples": self.max_samples,
            "dataloaders": None if self.dataloaders is None else list(self.dataloaders),
        }

    def _tell_others(self, trainer: Trainer) -> None:
        """Tell other callbacks what one step has shown; their errors are not this monitor's."""

    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        """Send what is no scalar to a Weights & Biases run."""

    def _log_last_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        """Send what ends a fit, a validation or a test to a Weights & Biases run."""

    def _forget(self) -> None:
        """Drop what was measured last."""

    # What users of a monitor call.

    def history(self) -> list[dict[str, Any]]:
        """Return one row per measured validation: ``stage``, ``epoch``, ``step`` and every logged key.

        Rows survive checkpoints.
        """
        return self._history.rows()

    # Lightning's hooks.

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints; no two monitors of a trainer have the same group."""
        return self._generate_state_key(group=self.group)

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the schedule's position."""
        return self._history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; evaluating a checkpoint leaves the history as it is."""
        self._history.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get ready for another run."""
        del pl_module
        check_strategy(trainer, type(self).__name__)
        self._defined.clear()
        self._memory.reset()
        self._history.setup(stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the module before anything is compiled or run."""
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
        """Start to measure if this evaluation is due."""
        self._start(trainer, pl_module)

    on_test_start = on_validation_start

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the module while its step runs."""
        del trainer, pl_module, batch, batch_idx
        if self._measuring and not self._tolerance.failed and self._selection.has_room(dataloader_idx):
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
        """Measure what was seen."""
        del outputs
        with self._whole(trainer, pl_module, dataloader_idx):
            if self._probe.is_open:
                with self._tolerance.tolerate(trainer), plain_tensors():
                    self._measure(self._step(trainer, pl_module, batch, dataloader_idx, batch_idx))
                self._tell_others(trainer)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log before checkpoints and early stopping look."""
        if self._measuring:
            self._measuring = False
            # Where one process alone fails in a reduction, the others must not wait for it.
            with self._tolerance.tolerate(trainer, spares_memory=trainer.world_size == 1), plain_tensors():
                self._finish(trainer, pl_module)

    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print one table for all monitors that ask for it."""
        del pl_module
        asking = [each for each in trainer.callbacks if isinstance(each, Monitor) and each.summary]  # type: ignore[attr-defined]
        if trainer.is_global_zero and asking[:1] == [self]:
            rows = [row for monitor in asking for row in monitor.rows_of_fit()]
            texts = {key: words for monitor in asking for key, words in monitor.texts(trainer).items()}
            print_fit_summary(rows, texts)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send what ends a stage to Weights & Biases, and leave the module as it was."""
        del pl_module, stage
        try:
            with self._tolerance.tolerate(trainer, "sends its last charts nowhere", is_extra=True):
                for run in wandb_runs(trainer):
                    for index in self._selection.indices:
                        self._log_last_media(run, trainer, index)
        finally:
            self._selection.end()
            self._forget()
            self._probe.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, exception
        self._probe.detach()

    # The parts of a measurement.

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measuring = self._history.is_due(trainer, self.every_n_epochs)
        self._tolerance.begin(raises=self.on_error == "raise" or trainer.sanity_checking)
        if not self._measuring:
            return
        self._probe.attach(pl_module)
        self._memory.begin()
        self._is_sharded = is_sharded(pl_module)
        if self._is_sharded and torch.is_inference_mode_enabled():
            # FSDP keeps the tensors that it gathers into first, and no gradient goes through those of inference mode.
            with plain_tensors(), unsharded(pl_module):
                pass
        self._selection.begin(trainer, self.dataloaders, self.max_samples)
        with self._tolerance.tolerate(trainer), plain_tensors():
            self._begin(trainer, pl_module, self._selection.indices)

    @contextmanager
    def _whole(self, trainer: Trainer, pl_module: LightningModule, dataloader_idx: int) -> Iterator[None]:
        """Have all parameters of a sharded module on each process where one of them needs them.

        All processes come here after every batch of a measurement, also those that have no sample or have failed.
        """
        runs = self._probe.is_open and self._runs_module(trainer, dataloader_idx)
        with ExitStack() as stack:
            if self._measuring and self._is_sharded and trainer.strategy.reduce_boolean_decision(runs, all=False):
                with self._tolerance.tolerate(trainer):
                    stack.enter_context(without_hooks(pl_module))
                # Not tolerated: a process that fails in a collective and goes on would leave the others in it.
                stack.enter_context(unsharded(pl_module))
            yield

    def _step(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int, batch_idx: int
    ) -> Step:
        inputs, target = self._inputs_and_targets(batch)
        if not (target is None or isinstance(target, Tensor)):
            raise ValueError(
                f"The targets must be a tensor or None, got {type(target).__name__}; "
                "pass `inputs_and_targets=` a function that picks them."
            )
        return Step(trainer, pl_module, inputs, target, dataloader_idx, batch_idx)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.reduce_boolean_decision(not self._tolerance.failed, all=True):
            return
        values: dict[str, float] = {}
        for index in self._selection.indices:
            values |= self._finite_values(trainer, index)
        shown = None if self._prog_bar_key is None else self._full_key(self._prog_bar_key, trainer, 0)
        log_values(pl_module, values, shown)
        if trainer.sanity_checking:
            return
        self._history.add(trainer, values)
        # Last, since one process alone has runs: where they fail, all have logged the same, and agree on what is due.
        with self._tolerance.tolerate(trainer, "sends that point's tables and charts nowhere", is_extra=True):
            self._tell_wandb(trainer, values.keys())

    def _finite_values(self, trainer: Trainer, dataloader_idx: int) -> dict[str, float]:
        return loggable({
            self._full_key(key, trainer, dataloader_idx): float(value)
            for key, value in self._values(dataloader_idx).items()
        })

    def _tell_wandb(self, trainer: Trainer, names: Set[str]) -> None:
        for run in wandb_runs(trainer):
            if new := names - self._defined:
                define_metrics(run, sorted(new))
                record_config(run, f"{self.group}_monitor", self._settings())
            for index in self._selection.indices:
                self._log_media(run, trainer, index)
        self._defined |= names

    def _full_key(self, key: str, trainer: Trainer, dataloader_idx: int) -> str:
        return keys.full_key(
            key,
            group=self._group_of(key),
            testing=trainer.testing,
            dataloader_idx=dataloader_idx,
            num_dataloaders=self._selection.num_dataloaders,
        )

    def _group_of(self, key: str) -> str:
        """Group under which a key is logged."""
        del key
        return self.group

    def rows_of_fit(self) -> list[dict[str, Any]]:
        """Return the part of the history that belongs to the last fit and the one that it went on from."""
        return self._history.rows_of_fit()

    def texts(self, trainer: Trainer) -> dict[str, str]:
        """Return what the last measurement says in words, by key."""
        del trainer
        return {}

    def paused(self) -> AbstractContextManager[None]:
        """Record nothing of what runs inside."""
        return self._probe.paused()

    @contextmanager
    def _run_again(self, step: Step) -> Iterator[None]:
        """Run the module inside without a trace in it, in random states, and in what the monitors record."""
        with ExitStack() as stack:
            for callback in step.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Monitor):
                    stack.enter_context(callback.paused())
            stack.enter_context(undisturbed(step.module, self.seed))
            yield
