"""How often attacks succeed, at every validation epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import inf, log
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_flatness.attacks import (
    AdaptiveAttack,
    AttackResult,
    Budget,
    LogitsFunction,
    Norm,
    ThreatModel,
)
from lightning_flatness.attacks._oracle import Oracle
from lightning_flatness.attacks.masking_rules import DIAGNOSED_SAMPLES
from lightning_flatness.attacks.threat import PerChannel
from lightning_flatness.callbacks._attack_listener import AttackListener
from lightning_flatness.callbacks._attack_record import AttackedBatch, AttackRecord
from lightning_flatness.callbacks._attack_run import AttackRun
from lightning_flatness.callbacks._attacks import AttackSettings, build_attacks
from lightning_flatness.callbacks._batches import InputsAndTargets, batch_length
from lightning_flatness.callbacks._dataloaders import share_of
from lightning_flatness.callbacks._epsilon_curve import build_epsilon_curve
from lightning_flatness.callbacks._examples import Examples
from lightning_flatness.callbacks._history import stage_of
from lightning_flatness.callbacks._masking import MaskingWatch
from lightning_flatness.callbacks._module import (
    ModuleLogits,
    OutputProbe,
    head_logits,
    logits_function,
)
from lightning_flatness.callbacks._monitor import Monitor, OnError
from lightning_flatness.callbacks._pass_budget import PassBudget
from lightning_flatness.callbacks._seeds import own_generators, own_seeds
from lightning_flatness.callbacks._step import Step
from lightning_flatness.callbacks._threat import (
    Radius,
    resolve_threat,
    warn_if_normalised_twice,
)
from lightning_flatness.functional._checks import check_counts
from lightning_flatness.functional._numerics import at_least_float32
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.wandb_media import log_adversarial_examples, log_epsilon_curves
from lightning_flatness.tracking.wandb_run import wandb_runs

_SANITY_SAMPLES = 2
"""Samples attacked in the sanity check: enough to see that everything runs."""
_FEWEST_SAMPLES = 64
"""Attacked in every evaluation, over all processes, however small the training set is."""
_TIME_FRACTION = 0.15
_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class AttackMonitor(Monitor):
    r"""Log how often attacks fool the classifier, and whether its robustness is only masked gradients.

    The attacks run on the validation (and test) batches right after the module's own step, with the weights, the
    precision and the inputs of that step, and share the logits that it has computed. Training is bit for bit what it is
    without the callback: random numbers, gradients, modes and running statistics are put back. The keys are
    ``attack/{label}_{quantity}``, see :data:`~lightning_flatness.tracking.keys.ATTACK_QUANTITIES`, and those of
    :data:`~lightning_flatness.tracking.keys.MASKING_KEYS`; where several attacks run, ``attack/worst_case_*`` counts
    what at least one of them fools. In the sanity check every attack is tried on two samples, so that mistakes show
    before training.

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
        budget: of the default attack, an :class:`~lightning_flatness.attacks.AdaptiveAttack`: ``"fast"``,
            ``"standard"`` or ``"thorough"``; None to run only ``attacks``.
        attacks: further attacks: name of a torchattacks attack → its keywords (or None); any label → an attack, or an
            instance of a torchattacks attack; any label → keywords with the entry ``attack``, the name.
        epsilons: radii at which the default attack gives a robust accuracy each, by bisection.
        logits_fn: maps the module and inputs to logits; by default the module's ``forward``.
        autocast_dtype: ``"bfloat16"`` to run the default attack's passes in it; successes are checked without it.
        loss_threshold: increase of the loss, in nats, that counts as success in ``loss_success_rate``.
        num_classes: number of classes, to log ``success_rate`` and ``robust_accuracy`` per class.
        masking: diagnose gradient masking.
        masking_samples: leading samples that the diagnosis runs on, as far as they are classified right, over all
            processes.
        masking_every_n: run its expensive rules at every n-th measurement of a fit, beginning with the first, and in
            every other evaluation.
        num_examples: adversarial examples of each attack that Weights & Biases gets at the end; 0 for none.
        max_time_fraction: share of the forward and backward passes of training, which stand for its time, that attacks
            may take in a fit. Seconds are not measured: the number of samples does not depend on the machine, though it
            does on the number of processes. Three passes are counted for each sample trained on; as many leading
            samples (at least 64 over all processes) are attacked as fit into the share, from which masking is paid
            first. None for 0.15, or for no limit where ``max_samples`` says how many; ``inf`` for all samples.
        prog_bar: show the first attack's robust accuracy in the progress bar.
        group: first part of the log keys; two monitors of one trainer need different ones.
        head: layer whose outputs are the logits, or its dotted name, where ``forward`` returns something else.
        inputs_and_targets: maps a batch to its inputs and class indices; by default the first two parts of a tuple or
            list, or the usual names of a dictionary.
        every_n_epochs: measure in the first epoch that has a validation, and then when n epochs have passed.
        max_samples: attack at most that many leading samples of each epoch, over all processes; intervals are logged.
        dataloaders: indices of the dataloaders to measure; by default all.
        seed: of the random starts, the same in every epoch.
        on_error: what to do when an attack fails after the sanity check: ``"raise"``, or ``"warn"`` once and leave out
            that point of the curves.
        summary: end a fit with a table of the last and the smallest or largest values, one for all monitors that ask.

    Raises:
        ValueError: if an argument is out of range or an attack is unknown.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AttackMonitor(epsilon=8 / 255)], logger=False)
    """

    _probe: OutputProbe

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
        budget: Budget | None = "fast",
        attacks: Mapping[str, AttackSettings] | None = None,
        epsilons: Sequence[float | str] = (),
        logits_fn: ModuleLogits | None = None,
        autocast_dtype: Literal["bfloat16", "float16"] | None = None,
        loss_threshold: float = log(2),
        num_classes: int | None = None,
        masking: bool = True,
        masking_samples: int = DIAGNOSED_SAMPLES,
        masking_every_n: int = 5,
        num_examples: int = 8,
        max_time_fraction: float | None = None,
        prog_bar: bool = True,
        group: str = keys.ATTACK_GROUP,
        head: nn.Module | str | None = None,
        inputs_and_targets: InputsAndTargets | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        dataloaders: Sequence[int] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        summary: bool = True,
    ) -> None:
        if head is not None and logits_fn is not None:
            raise ValueError("`head` and `logits_fn` both say what the logits are; pass one of them.")
        _check_settings(autocast_dtype, num_examples)
        check_counts(masking_samples=masking_samples, masking_every_n=masking_every_n)
        self.threat = resolve_threat(threat, epsilon, norm, lower, upper, mean, std)
        self.budget = budget
        default = None if budget is None else AdaptiveAttack(self.threat, budget, _DTYPES[autocast_dtype])
        self.attacks = build_attacks(self.threat, default, attacks)
        super().__init__(
            OutputProbe(),
            group=group,
            inputs_and_targets=inputs_and_targets,
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            dataloaders=dataloaders,
            seed=seed,
            on_error=on_error,
            summary=summary,
            prog_bar_key=keys.attack_key(next(iter(self.attacks)), keys.ROBUST_ACCURACY) if prog_bar else None,
        )
        self.loss_threshold = loss_threshold
        self.num_classes = num_classes
        self.autocast_dtype = autocast_dtype
        self._logits = logits_fn if head is None else head_logits(head)
        default_fraction = _TIME_FRACTION if max_samples is None else inf
        self._passes = PassBudget(default_fraction if max_time_fraction is None else max_time_fraction)
        self._curve = build_epsilon_curve(default, epsilons, taken=list(self.attacks)[1:])
        self.masking_samples = masking_samples
        self.masking_every_n = masking_every_n
        self._masking = MaskingWatch(self.threat) if masking else None
        self.num_examples = num_examples
        self._examples: dict[int, Examples] = {}
        self._saw_inputs = self._said_part = False
        self._new_record(torch.device("cpu"))  # made once more for every measurement; here its arguments are checked
        self._records: dict[int, AttackRecord] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._attacked: tuple[Step, dict[str, AttackResult]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the history, the schedule's position and what the diagnosis of masking has found."""
        masking = {} if self._masking is None else {"masking": self._masking.state_dict()}
        return {**super().state_dict(), **masking, "passes": self._passes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken; evaluating a checkpoint leaves the history as it is."""
        super().load_state_dict(state_dict)
        if not self._history.restores:
            return
        if "passes" in state_dict:  # checkpoints of other versions
            self._passes.load_state_dict(state_dict["passes"])
        if self._masking is not None and "masking" in state_dict:
            self._masking.load_state_dict(state_dict["masking"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get ready for another run."""
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING:
            self._passes.reset()
        if self._masking is not None:
            self._masking.warn_again()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what is trained on."""
        del trainer, pl_module, outputs, batch_idx
        self._passes.pay_in(batch_length(batch) or 0)

    def _forget(self) -> None:
        self._records = {}

    def _log_last_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        full_key = partial(self._full_key, trainer=trainer, dataloader_idx=dataloader_idx)
        if rows := self._examples[dataloader_idx].rows:
            table, panel = full_key(keys.ADVERSARIAL_EXAMPLES), full_key(keys.ADVERSARIAL_IMAGES)
            log_adversarial_examples(run, table, panel, trainer.global_step, rows)
        if self._curve is not None:
            measured = self._history.rows_of_stage(stage_of(trainer))
            if curves := self._curve.over_epochs(measured, [full_key(key) for key in self._curve.keys]):
                key = full_key(keys.EPSILON_CURVE)
                log_epsilon_curves(run, key, trainer.global_step, self._curve.epsilons, curves)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "threat": asdict(self.threat),
            "budget": self.budget,
            "attacks": {label: repr(attack) for label, attack in self.attacks.items()},
            "autocast_dtype": self.autocast_dtype,
            "loss_threshold": self.loss_threshold,
            "epsilons": [] if self._curve is None else list(self._curve.epsilons),
            "num_classes": self.num_classes,
            "masking": self._masking is not None,
            "masking_samples": self.masking_samples,
            "masking_every_n": self.masking_every_n,
            "own_logits": self._logits is not None,
            "max_time_fraction": self._passes.fraction if self._passes.fraction < inf else "inf",
            "seed": self.seed,
        }

    def _group_of(self, key: str) -> str:
        if not key.startswith(f"{keys.MASKING_GROUP}/"):
            return self.group
        return keys.MASKING_GROUP if self.group == keys.ATTACK_GROUP else f"{self.group}_{keys.MASKING_GROUP}"

    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        device = pl_module.device
        shown = self.num_examples if wandb_runs(trainer) else 0
        self._examples = {index: Examples(shown, self.threat) for index in dataloader_indices}
        self._records = {index: self._new_record(device) for index in dataloader_indices}
        self._generators = own_generators(self.seed, dataloader_indices)
        self._passes.begin(dataloader_indices, share_of(trainer, _FEWEST_SAMPLES), limited=_is_fitting(trainer))
        if self._curve is not None:
            self._curve.begin(dataloader_indices, device)
        if self._masking is not None:
            share = share_of(trainer, self.masking_samples)
            thorough, remembers = self._diagnoses_thoroughly(trainer), _is_fitting(trainer)
            self._masking.begin(dataloader_indices, device, share, thorough=thorough, remembers=remembers)

    def _new_record(self, device: torch.device) -> AttackRecord:
        return AttackRecord(list(self.attacks), self.loss_threshold, self.num_classes, device)

    def _diagnoses_thoroughly(self, trainer: Trainer) -> bool:
        measured = len(self._history.rows_of_stage(TrainerFn.FITTING.value))
        return not trainer.sanity_checking and (not _is_fitting(trainer) or measured % self.masking_every_n == 0)

    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        del trainer
        return self._passes.fits(1, dataloader_idx) > 0

    def _measure(self, step: Step) -> None:
        inputs, target = self._checked(step)
        shared = self._probe.close(inputs)
        count = self._count(step)
        if not count:
            return
        with self._run_again(step):
            logits = self._memory.in_parts(logits_function(step.trainer, step.module, self._logits))
            logits_fn = self._passes.counted(logits)
            # Copies: tensors made in inference mode cannot be recorded by an attack.
            inputs, target = inputs[:count].clone(), target[:count].clone()
            clean_logits = self._clean_logits(shared, logits_fn, inputs)
            seeds = own_seeds(step, self._generators[step.dataloader_idx], count)
            batch = AttackedBatch(inputs, target, clean_logits, seeds)
            run = AttackRun(logits_fn, batch, self._memory, self._passes)
            if step.trainer.sanity_checking:
                run.try_out(self.attacks, self.threat)
            else:
                self._attacked = step, self._attack(run, step.dataloader_idx)

    def _clean_logits(self, shared: Tensor | None, logits_fn: LogitsFunction, inputs: Tensor) -> Tensor:
        """Those of the step itself, where it has computed them."""
        if shared is None or self._logits is not None:
            return self._memory.suffice(partial(Oracle(logits_fn, None).logits, inputs), len(inputs))
        return at_least_float32(shared[: len(inputs)]).clone()

    def _checked(self, step: Step) -> tuple[Tensor, Tensor]:
        inputs, target = step.inputs, step.target
        if not isinstance(inputs, Tensor) or target is None:
            raise ValueError(
                f"Attacks need a tensor of inputs and one of classes, got {type(inputs).__name__} and "
                f"{type(target).__name__}; pass `inputs_and_targets=` a function that picks them."
            )
        self.threat.check_inputs(inputs)
        if not self._saw_inputs:
            self._saw_inputs = True
            warn_if_normalised_twice(self.threat, inputs)
        return inputs, target

    def _count(self, step: Step) -> int:
        """Number of leading samples of a batch that are attacked."""
        count = len(step.inputs)
        if step.trainer.sanity_checking:
            count = min(count, _SANITY_SAMPLES)
        fitting = self._passes.fits(count, step.dataloader_idx)
        if fitting < count and self.max_samples is None and not self._said_part:
            self._said_part = True
            rank_zero_info(
                f"{type(self).__name__} attacks as many validation samples as fit into "
                f"{100 * self._passes.fraction:.2g} % of the training, and logs intervals; `max_time_fraction=` is "
                "that share, float('inf') attacks them all."
            )
        return self._selection.claim(fitting, step.dataloader_idx)

    def _attack(self, run: AttackRun, index: int) -> dict[str, AttackResult]:
        results, seconds = run.attack(self.attacks)
        # Behind all attacks, whose results must not depend on whether anybody collects.
        for label, result in results.items():
            run.suffice(partial(self._examples[index].collect, label, result))
        self._records[index].add(results, seconds, run.batch)
        if self._curve is not None:
            run.suffice(partial(self._curve.add, index))
        self._passes.pay_attack(len(run.batch.inputs), index)
        if self._masking is not None:
            run.suffice(partial(self._masking.add, index))
            self._passes.owe()
        return results

    def _tell_others(self, trainer: Trainer) -> None:
        if self._attacked is None:
            return
        (step, results), self._attacked = self._attacked, None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AttackListener):
                callback.on_attacked(step, results)

    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        is_part = self.max_samples is not None or self._passes.is_limited
        values = self._records[dataloader_idx].compute(intervals=is_part)
        if self._curve is not None:
            values = {**self._curve.compute(dataloader_idx), **values}
        if self._masking is not None:
            values |= self._masking.compute(dataloader_idx)
        return values

    def texts(self, trainer: Trainer) -> dict[str, str]:
        """Return why the alarm is on."""
        found = {} if self._masking is None else self._masking.reasons
        return {self._reasons_key(trainer, index): " ".join(reasons) for index, reasons in found.items() if reasons}

    def _reasons_key(self, trainer: Trainer, dataloader_idx: int) -> str:
        return self._full_key(keys.MASKING_REASONS, trainer, dataloader_idx)

    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        if self._masking is not None and dataloader_idx in self._masking.reasons:
            run.summary[self._reasons_key(trainer, dataloader_idx)] = self._masking.reasons[dataloader_idx]


def _check_settings(autocast_dtype: str | None, num_examples: int) -> None:
    if autocast_dtype not in _DTYPES:
        raise ValueError(f"`autocast_dtype` must be 'bfloat16', 'float16' or None, got {autocast_dtype!r}.")
    if num_examples < 0:
        raise ValueError(f"`num_examples` must be >= 0, got {num_examples}.")


def _is_fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
