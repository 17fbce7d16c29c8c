"""Flatness, loss and confidence along attacks, at every validation epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_flatness.attacks import Norm, PathName, ThreatModel, path_positions, trajectory
from lightning_flatness.attacks.losses import AttackLoss, resolve_attack_loss
from lightning_flatness.attacks.losses import LossName as AttackLossName
from lightning_flatness.attacks.threat import PerChannel
from lightning_flatness.callbacks._batches import InputsAndTargets
from lightning_flatness.callbacks._head_monitor import HeadMonitor, Observation
from lightning_flatness.callbacks._history import stage_of
from lightning_flatness.callbacks._module import ModuleLogits, logits_function, on_device
from lightning_flatness.callbacks._monitor import OnError
from lightning_flatness.callbacks._seeds import own_generators, own_seeds
from lightning_flatness.callbacks._threat import Radius, resolve_threat
from lightning_flatness.functional import TrajectoryPoints
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss
from lightning_flatness.metrics import AttackTrajectory
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.trajectory_curves import chart_lines, curves_over_epochs
from lightning_flatness.tracking.wandb_media import log_line_chart

_SANITY_SAMPLES = 2
"""Samples followed in the sanity check: enough to see that everything runs."""


class AttackTrajectoryMonitor(HeadMonitor):
    r"""Log how flatness, loss and confidence change along attacks; small flatness is flat.

    Along an attack the loss becomes sharper up to where the label flips; behind it, a model that is confidently wrong
    is flatter than where it was right: a valley in which flatness protects nothing. The samples of the validation (and
    test) batches that are classified right are followed over all steps of PGD, beyond the flip, at little more than the
    cost of the attack; other paths show whether the valley is special to attacks. See
    :func:`~lightning_flatness.attacks.trajectory` for the paths, :class:`~lightning_flatness.metrics.AttackTrajectory`
    for the quantities, and :data:`~lightning_flatness.tracking.keys.TRAJECTORY_KEYS` for the keys. Training is bit for
    bit what it is without the callback.

    The curves are returned by :meth:`trajectories` and drawn by
    :func:`~lightning_flatness.tracking.trajectory_curves.trajectory_figure`. With a ``WandbLogger``, the run gets a
    chart of every measurement and one over the epochs.

    Of a module sharded by FSDP2, every process has all parameters while a batch is attacked, but no optimizer states.

    Args:
        epsilon: radius of the ball in the data's own units, before normalisation, as a number or a fraction
            (``"8/255"``, in YAML); 8/255 if no ``threat`` is given.
        norm: ``"linf"`` or ``"l2"``.
        lower: smallest valid value, or None.
        upper: largest valid value, or None.
        mean: what the normalisation of the data subtracts, or None.
        std: what the normalisation divides by, or None.
        threat: all of the above at once.
        path: a path, or several: ``"attack"``, which is PGD, ``"noise"``, ``"image"``, ``"random"``,
            ``"gaussian_noise"``, ``"blur"``, ``"contrast"`` or ``"brightness"``.
        steps: gradient steps of the attack.
        step_size: length of every step in data units; None for 2.5 ε / ``steps``.
        loss: what the attack makes grow: a name or a function of ``(logits, target)``.
        flatness_loss: the training loss, as for :class:`~lightning_flatness.RelativeFlatnessMonitor`.
        logits_fn: maps the module and inputs to logits; by default the module's ``forward``.
        prog_bar: show the valley rate of the first path in the progress bar.
        group: first part of the log keys; two monitors of one trainer need different ones.
        head: the last layer, affine in its input, its dotted name, or None for the ``nn.Linear`` called last in the
            first validation batch.
        inputs_and_targets: maps a batch to its inputs and class indices; by default the first two parts of a tuple or
            list, or the usual names of a dictionary.
        every_n_epochs: measure in the first epoch that has a validation, and then when n epochs have passed.
        max_samples: follow at most that many leading samples of each epoch, over all processes; None for all.
        dataloaders: indices of the dataloaders to measure; by default all.
        seed: of the noise and directions, the same in every epoch.
        on_error: what to do when measuring fails after the sanity check: ``"raise"``, or ``"warn"`` once and leave out
            that point of the curves.
        summary: end a fit with a table of the last and the smallest or largest values, one for all monitors that ask.

    Raises:
        ValueError: if an argument is out of range or a path is unknown.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = AttackTrajectoryMonitor(epsilon=8 / 255, path=["attack", "noise"], every_n_epochs=5)
        >>> trainer = Trainer(callbacks=[monitor], logger=False)
    """

    def __init__(
        self,
        epsilon: Radius | None = None,
        *,
        norm: Norm = "linf",
        lower: PerChannel | None = 0.0,
        upper: PerChannel | None = 1.0,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        threat: ThreatModel | None = None,
        path: PathName | Sequence[PathName] = "attack",
        steps: int = 20,
        step_size: float | None = None,
        loss: AttackLossName | AttackLoss = "cross_entropy",
        flatness_loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
        logits_fn: ModuleLogits | None = None,
        prog_bar: bool = False,
        group: str = keys.TRAJECTORY_GROUP,
        head: nn.Module | str | None = None,
        inputs_and_targets: InputsAndTargets | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = 64,
        dataloaders: Sequence[int] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        summary: bool = True,
    ) -> None:
        self.threat = resolve_threat(threat, epsilon, norm, lower, upper, mean, std)
        names: Sequence[PathName] = [path] if isinstance(path, str) else path
        if not names:
            raise ValueError("`path` must name at least one path, got [].")
        self._positions = {name: path_positions(name, steps) for name in names}
        if step_size is not None and not step_size > 0:
            raise ValueError(f"`step_size` must be > 0 or None, got {step_size}.")
        resolve_attack_loss(loss)
        super().__init__(
            head=head,
            group=group,
            inputs_and_targets=inputs_and_targets,
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            dataloaders=dataloaders,
            seed=seed,
            on_error=on_error,
            summary=summary,
            prog_bar_key=keys.trajectory_key("valley_rate", names[0]) if prog_bar else None,
        )
        self.steps = steps
        self.step_size = step_size
        self.loss = loss
        self.flatness_loss = resolve_loss(flatness_loss)
        self._logits = logits_fn
        self._metrics: dict[int, dict[PathName, AttackTrajectory]] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._trajectories: list[dict[str, Any]] = []
        self._measurement: dict[str, Any] | None = None

    @property
    def paths(self) -> list[PathName]:
        """Names of the paths."""
        return list(self._positions)

    def trajectories(self) -> list[dict[str, Any]]:
        """Return one row per measured validation, dataloader and path.

        A row holds ``stage``, ``epoch``, ``step``, ``dataloader_idx``, ``path`` and ``curves``, the lists of
        :class:`~lightning_flatness.metrics.AttackTrajectory`. Rows survive checkpoints.
        """
        return [dict(row) for row in self._trajectories]

    def state_dict(self) -> dict[str, Any]:
        """Return the history, the schedule's position and the curves."""
        return {**super().state_dict(), "trajectories": self.trajectories()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; evaluating a checkpoint leaves the history as it is."""
        super().load_state_dict(state_dict)
        if self._history.restores:
            self._trajectories = [dict(row) for row in state_dict["trajectories"]]

    def _forget(self) -> None:
        self._metrics = {}

    def _log_last_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        stage = stage_of(trainer)
        rows = [row for row in self._trajectories if row["stage"] == stage and row["dataloader_idx"] == dataloader_idx]
        for path in self._positions:
            if curves := curves_over_epochs(rows, "neuronwise_mean", path):
                title = f"Mean relative flatness along the path: {path}"
                key = self._chart_key(keys.TRAJECTORY_EPOCHS_CHART, path, trainer, dataloader_idx)
                log_line_chart(run, key, title, curves, "position", trainer.global_step)

    def _chart_key(self, key: str, path: PathName, trainer: Trainer, index: int) -> str:
        name = key.removeprefix(f"{keys.TRAJECTORY_GROUP}/")
        return self._full_key(keys.trajectory_key(name, path), trainer, index)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "threat": asdict(self.threat),
            "path": self.paths,
            "steps": self.steps,
            "step_size": self.step_size,
            "loss": self.loss if isinstance(self.loss, str) else repr(self.loss),
            "flatness_loss": repr(self.flatness_loss),
            "own_logits": self._logits is not None,
            "seed": self.seed,
        }

    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        where = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        stage = stage_of(trainer)
        self._measurement = None if trainer.sanity_checking else {"stage": stage, **where}
        device = pl_module.device
        make = {name: partial(AttackTrajectory, positions) for name, positions in self._positions.items()}
        self._metrics = {
            index: {name: on_device(metric(), device) for name, metric in make.items()} for index in dataloader_indices
        }
        for metrics in self._metrics.values():
            for metric in metrics.values():  # a process may have no sample
                metric.update(TrajectoryPoints.empty(len(metric.positions), torch.empty(0, device=device)))
        self._generators = own_generators(self.seed, dataloader_indices)

    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        del trainer, dataloader_idx
        return True

    def _observe(self, observation: Observation) -> None:
        step, count = observation.step, observation.samples
        inputs, target = self._checked(observation)
        seeds = own_seeds(step, self._generators[step.dataloader_idx], count)
        is_trial = step.trainer.sanity_checking
        if is_trial:
            # An untrained model may be wrong everywhere, and wrong samples are not followed.
            inputs, target = inputs[:_SANITY_SAMPLES], observation.head.logits[:_SANITY_SAMPLES].argmax(1)
        assert self.head_name is not None
        head: Any = step.module.get_submodule(self.head_name)
        with self._run_again(step):
            logits_fn = self._memory.in_parts(logits_function(step.trainer, step.module, self._logits))
            for path, metric in self._metrics[step.dataloader_idx].items():
                follow = partial(
                    trajectory,
                    logits_fn,
                    head,
                    inputs,
                    target,
                    self.threat,
                    path=path,
                    steps=1 if is_trial else self.steps,
                    step_size=self.step_size,
                    loss=self.loss,
                    flatness_loss=self.flatness_loss,
                    generator=seeds,
                )
                found = self._memory.suffice(follow, len(inputs))
                if not is_trial:
                    metric.update(found.points)

    def _checked(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Copies: tensors made in inference mode cannot be recorded by an attack."""
        inputs, target, logits = observation.step.inputs, observation.target, observation.head.logits
        if not isinstance(inputs, Tensor) or target is None:
            raise ValueError(
                f"Trajectories need a tensor of inputs and one of classes, got {type(inputs).__name__} and "
                f"{type(target).__name__}; pass `inputs_and_targets=` a function that picks them."
            )
        if logits.ndim != 2 or len(logits) != observation.samples:
            raise ValueError(
                f"Trajectories need one row of logits for each of the {observation.samples} samples, "
                f"got shape {tuple(logits.shape)}."
            )
        return inputs[: observation.samples].clone(), target.clone()

    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        values: dict[str, Tensor] = {}
        for path, metric in self._metrics[dataloader_idx].items():
            values |= {keys.trajectory_key(name, path): value for name, value in metric.compute().items()}
            if self._measurement is not None and metric.curves:
                where = {"dataloader_idx": dataloader_idx, "path": path}
                self._trajectories.append({**self._measurement, **where, "curves": metric.curves})
        return values

    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        for path, metric in self._metrics[dataloader_idx].items():
            if metric.curves:
                key = self._chart_key(keys.TRAJECTORY_CHART, path, trainer, dataloader_idx)
                title = f"Epoch {trainer.current_epoch}, path: {path}"
                log_line_chart(run, key, title, chart_lines(metric.curves), "position")
