"""What a multiplied head would show, at every validation epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_flatness.attacks import Norm, ThreatModel, attack_scaled_head
from lightning_flatness.attacks._noise import DrawnSeeds
from lightning_flatness.attacks.threat import PerChannel
from lightning_flatness.callbacks._batches import InputsAndTargets
from lightning_flatness.callbacks._dataloaders import share_of
from lightning_flatness.callbacks._head_monitor import HeadMonitor, Observation
from lightning_flatness.callbacks._module import (
    ModuleLogits,
    head_logits,
    logits_function,
    on_device,
)
from lightning_flatness.callbacks._monitor import OnError
from lightning_flatness.callbacks._seeds import own_generators, own_seeds
from lightning_flatness.callbacks._threat import Radius, resolve_threat
from lightning_flatness.functional._checks import check_counts, check_scales
from lightning_flatness.metrics import HeadScaling
from lightning_flatness.metrics._named_means import NamedMeans
from lightning_flatness.metrics.head_scaling import IGNORED_TARGET
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.head_scaling import ScalingRow, log_scaling, scaling_rows

_SCALES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_SANITY_SAMPLES = 2
"""Samples attacked in the sanity check: enough to see that everything runs."""


class HeadScalingMonitor(HeadMonitor):
    r"""Log what flatness, loss, confidence and attacks would be if the head were multiplied by a number.

    Weight and bias times ``s`` change no decision. What changes all the same, growing ``s``: confidence goes to 1,
    relative flatness to 0 (the median first), the gradients of the cross-entropy to 0, and PGD on it finds nothing any
    more, while PGD on the margin and inputs found at ``s = 1`` fool as before: flatness by confidence is gradient
    masking. Where the curves of a real training resemble these, its flatness is no robustness.

    Nothing is retrained and the module is not touched: features and logits are those of its own validation (and test)
    step, for all scales at once. Only with ``epsilon`` or ``threat`` the module runs again, to be attacked on a few
    samples: two attacks of ``steps`` steps for each scale. The keys are ``scaling/{quantity}_{scale}``, see
    :data:`~lightning_flatness.tracking.keys.SCALING_QUANTITIES`; Weights & Biases also gets a table and a chart of the
    last measurement. Loss and flatness are those of the softmax cross-entropy, whatever the module is trained on.
    Training is bit for bit what it is without the callback.

    Of a module sharded by FSDP2, every process has all parameters while a batch is attacked, but no optimizer states.

    Args:
        epsilon: radius of the ball in the data's own units, before normalisation, as a number or a fraction
            (``"8/255"``, in YAML); None, without a ``threat``, not to attack.
        scales: factors of weight and bias.
        norm: ``"linf"`` or ``"l2"``.
        lower: smallest valid value, or None.
        upper: largest valid value, or None.
        mean: what the normalisation of the data subtracts, or None.
        std: what the normalisation divides by, or None.
        threat: all of the above at once.
        steps: gradient steps of each attack.
        attack_samples: leading samples that are attacked, over all processes.
        logits_fn: maps the module and inputs to logits; by default the module's ``forward``, or what it makes ``head``
            return where that is given.
        prog_bar: show the expected calibration error at the first scale in the progress bar.
        group: first part of the log keys; two monitors of one trainer need different ones.
        head: the last layer, affine in its input, its dotted name, or None for the ``nn.Linear`` called last in the
            first validation batch.
        inputs_and_targets: maps a batch to its inputs and class indices; by default the first two parts of a tuple or
            list, or the usual names of a dictionary. Samples with the target −100 do not count.
        every_n_epochs: measure in the first epoch that has a validation, and then when n epochs have passed.
        max_samples: measure at most that many leading samples of each epoch, over all processes.
        dataloaders: indices of the dataloaders to measure; by default all.
        seed: of the random starts, the same in every epoch.
        on_error: what to do when measuring fails after the sanity check: ``"raise"``, or ``"warn"`` once and leave out
            that point of the curves.
        summary: end a fit with a table of the last and the smallest or largest values, one for all monitors that ask.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[HeadScalingMonitor(epsilon=8 / 255)], logger=False)
    """

    def __init__(
        self,
        epsilon: Radius | None = None,
        *,
        scales: Sequence[float] = _SCALES,
        norm: Norm = "linf",
        lower: PerChannel | None = 0.0,
        upper: PerChannel | None = 1.0,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        threat: ThreatModel | None = None,
        steps: int = 10,
        attack_samples: int = 64,
        logits_fn: ModuleLogits | None = None,
        prog_bar: bool = False,
        group: str = keys.SCALING_GROUP,
        head: nn.Module | str | None = None,
        inputs_and_targets: InputsAndTargets | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        dataloaders: Sequence[int] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        summary: bool = True,
    ) -> None:
        attacks = epsilon is not None or threat is not None
        self.threat = resolve_threat(threat, epsilon, norm, lower, upper, mean, std) if attacks else None
        self.scales = _distinct(scales)
        check_counts(steps=steps, attack_samples=attack_samples)
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
            prog_bar_key=keys.scaling_key("calibration_error", self.scales[0]) if prog_bar else None,
        )
        self.steps = steps
        self.attack_samples = attack_samples
        self._logits = head_logits(head) if logits_fn is None and head is not None else logits_fn
        self._scaling: dict[int, HeadScaling] = {}
        self._attacked: dict[int, NamedMeans] = {}
        self._attack_room: dict[int, int] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._tables: dict[int, list[ScalingRow]] = {}
        self._is_trial = False

    def table(self, dataloader_idx: int = 0) -> list[ScalingRow]:
        """Return one row per scale of the last measurement: ``scale`` and every quantity that was measured.

        Args:
            dataloader_idx: of the dataloader.

        Returns:
            Rows in order of the scale; empty before the first measurement.
        """
        return [dict(row) for row in self._tables.get(dataloader_idx, [])]

    def _forget(self) -> None:
        self._scaling = {}

    def _log_last_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        if rows := self._tables.get(dataloader_idx):
            table, chart = (
                self._full_key(key, trainer, dataloader_idx) for key in (keys.SCALING_TABLE, keys.SCALING_CHART)
            )
            log_scaling(run, table, chart, trainer.global_step, rows)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "scales": list(self.scales),
            "threat": None if self.threat is None else asdict(self.threat),
            "steps": self.steps,
            "attack_samples": self.attack_samples,
            "own_logits": self._logits is not None,
            "seed": self.seed,
        }

    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        device, self._is_trial = pl_module.device, trainer.sanity_checking
        self._tables = {}
        self._scaling = {index: on_device(HeadScaling(self.scales), device) for index in dataloader_indices}
        none, head = torch.zeros(0, 2, device=device), torch.zeros(2, 2, device=device)
        for metric in self._scaling.values():
            metric.update(none, head, none, none[:, 0].long())  # a process may have no sample
        if self.threat is None:
            return
        names = [keys.scaling_key(name, scale) for name in keys.SCALING_ATTACK_QUANTITIES for scale in self.scales]
        self._attacked = {index: on_device(NamedMeans(names), device) for index in dataloader_indices}
        for means in self._attacked.values():
            means.update({})
        share = _SANITY_SAMPLES if self._is_trial else share_of(trainer, self.attack_samples)
        self._attack_room = dict.fromkeys(dataloader_indices, share)
        self._generators = own_generators(self.seed, dataloader_indices)

    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        del trainer
        return self._probe.runs_layer or self._attack_room.get(dataloader_idx, 0) > 0

    def _observe(self, observation: Observation) -> None:
        head, target = observation.head, observation.target
        if target is None or target.is_floating_point() or target.shape != head.logits.shape[:-1]:
            found = "None" if target is None else f"{target.dtype} {tuple(target.shape)}"
            raise ValueError(
                f"Head scaling needs one class index for each of the {tuple(head.logits.shape[:-1])} rows of logits, "
                f"got {found}; pass `inputs_and_targets=` a function that picks them."
            )
        self._scaling[observation.dataloader_idx].update(head.features, head.weight, head.logits, target)
        if self.threat is not None:
            self._attack(observation, self.threat, target)

    def _attack(self, observation: Observation, threat: ThreatModel, target: Tensor) -> None:
        step, index = observation.step, observation.dataloader_idx
        count = min(self._attack_room[index], observation.samples)
        if not count:
            return
        self._attack_room[index] -= count
        if not isinstance(step.inputs, Tensor) or len(target) < count or target.ndim != 1:
            raise ValueError(
                f"Attacks need a tensor of inputs and one class each, got {type(step.inputs).__name__} and targets of "
                f"shape {tuple(target.shape)}; leave out `epsilon`, or pass `inputs_and_targets=`."
            )
        threat.check_inputs(step.inputs[:count])
        seeds = own_seeds(step, self._generators[index], count).seeds
        classified = target[:count] != IGNORED_TARGET
        if not bool(classified.any()):
            return
        with self._run_again(step):
            attack = partial(
                attack_scaled_head,
                self._memory.in_parts(logits_function(step.trainer, step.module, self._logits)),
                # Copies: tensors made in inference mode cannot be recorded by an attack.
                step.inputs[:count][classified].clone(),
                target[:count][classified].clone(),
                threat,
                scales=self.scales[:1] if self._is_trial else self.scales,
                steps=1 if self._is_trial else self.steps,
                generator=DrawnSeeds(seeds[classified]),
            )
            result = self._memory.suffice(attack, count)
        if not self._is_trial:
            self._attacked[index].update({
                keys.scaling_key(name, scale): (total, samples)
                for name, (totals, samples) in result.rates().items()
                for scale, total in zip(self.scales, totals, strict=True)
            })

    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        computed = self._scaling[dataloader_idx].compute()
        values = {keys.SCALING_SAMPLES: computed["samples"], keys.SCALING_NONFINITE: computed["nonfinite"]}
        for name in (name for name in keys.SCALING_QUANTITIES if name in computed):
            # torchmetrics makes a scalar of a vector with one entry.
            entries = zip(self.scales, computed[name].reshape(-1), strict=True)
            values |= {keys.scaling_key(name, scale): value for scale, value in entries}
        if self.threat is not None:
            attacked = self._attacked[dataloader_idx].compute()
            values |= {key: mean for key, (mean, _) in attacked.items()}
            first = keys.scaling_key("robust_accuracy_margin", self.scales[0])
            if first in attacked:
                values[keys.SCALING_ATTACKED] = attacked[first][1]
        if not self._is_trial:
            self._tables[dataloader_idx] = scaling_rows({key: float(value) for key, value in values.items()})
        return values


def _distinct(scales: Sequence[float]) -> tuple[float, ...]:
    """Scales that have different keys."""
    check_scales(scales)
    if len({keys.radius_label(scale) for scale in scales}) < len(scales):
        raise ValueError(f"`scales` must differ in their first digits, which are in the keys, got {list(scales)}.")
    return tuple(map(float, scales))
