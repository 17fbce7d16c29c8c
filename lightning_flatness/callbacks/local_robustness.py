"""How robust the classifier is guaranteed or estimated to be, at every validation epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_flatness.attacks import AttackResult, Norm, ThreatModel
from lightning_flatness.attacks.threat import PerChannel
from lightning_flatness.callbacks._attack_listener import AttackListener, LatestBatch
from lightning_flatness.callbacks._batches import InputsAndTargets
from lightning_flatness.callbacks._bound_inputs import TRIED_SAMPLES, check_features, checked_target
from lightning_flatness.callbacks._bound_watch import BoundWatch
from lightning_flatness.callbacks._dataloaders import share_of
from lightning_flatness.callbacks._head_monitor import HeadMonitor, Observation
from lightning_flatness.callbacks._history import stage_of
from lightning_flatness.callbacks._lipschitz import FeaturesFunction, Lipschitz, LipschitzSource
from lightning_flatness.callbacks._module import ModuleLogits, features_function, on_device
from lightning_flatness.callbacks._monitor import OnError
from lightning_flatness.callbacks._observe import plain_tensors
from lightning_flatness.callbacks._step import Step
from lightning_flatness.callbacks._threat import Radius, named_radii, resolve_threat
from lightning_flatness.callbacks.attack import AttackMonitor
from lightning_flatness.functional import BoundMethod
from lightning_flatness.functional._checks import check_counts, finite_rows
from lightning_flatness.metrics import LocalRobustnessBound, LossBoundCheck
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.bound_curves import AccuracyCurve, accuracies_over_epsilon
from lightning_flatness.tracking.wandb_media import log_accuracy_curves

_FACTORS = (0.25, 0.5, 1.0, 2.0)
"""Standard radii, as multiples of epsilon."""


class LocalRobustnessMonitor(HeadMonitor, AttackListener):
    r"""Log how far inputs can move without a change of the prediction, and how much the loss can grow on the way.

    With ``‖φ(x + δ) − φ(x)‖₂ ≤ L‖δ‖``, the exact distance of the features to the decision boundary gives each input a
    radius; see :class:`~lightning_flatness.metrics.LocalRobustnessBound`. Features and logits are those of the module's
    own validation (and test) step, and only the Lipschitz constant ``L`` needs the module again:

    - ``lipschitz="estimated"``: the norm of each sample's Jacobian, a lower bound on ``L``. **Nothing is guaranteed**:
      the keys are ``bound/estimated_*``. It costs 30 to 55 forwards (10 steps of the power method, two backward passes
      each) per sample of the leading ``lipschitz_samples``, the only ones counted;
    - ``lipschitz="certified"``: an upper bound on ``L`` by a rule for each operation between inputs and features, once
      per measurement: a guarantee for every sample, ``bound/certified_*``, but usually a tiny one unless the network
      is built to be Lipschitz. For ``norm="linf"`` it is that for l2 times ``√n``, for inputs of ``n`` numbers;
    - a number: your own certificate, in the units of ``epsilon`` and in ``norm``.

    Wherever an :class:`~lightning_flatness.AttackMonitor` of the same trainer attacks a batch, before or after this
    callback, the bound on the loss is compared with what the attacks have done to features and loss, by one more
    forward per attack: ``bound/violation_rate`` is 0 unless there is a bug, ``bound/tightness`` says how far the bound
    is above the real rise, and ``bound/taylor_violation_rate`` how often the published Taylor bound is below it.
    ``bound/lipschitz_violation_rate`` says how often the features moved farther than ``L`` allows; where that should be
    a certificate, a warning says that it is none.

    Accuracies and radii hold whatever loss the model is trained on; bounds on the loss are those of the cross-entropy.
    Training is bit for bit what it is without the callback.

    Of a module sharded by FSDP2, every process has all parameters, but no optimizer states, while a batch is measured
    that needs the module: the first, those whose constants are estimated or certified, and those that are attacked.

    Args:
        epsilon: length of perturbations in the data's own units, before normalisation, as a number or a fraction
            (``"8/255"``, in YAML); 8/255 if no ``threat`` is given. Of one per channel the largest counts.
        norm: ``"linf"`` or ``"l2"``.
        lower: smallest valid value, or None; only checked.
        upper: largest valid value, or None; only checked.
        mean: what the normalisation of the data subtracts, or None.
        std: what the normalisation divides by, or None.
        threat: all of the above at once.
        lipschitz: ``"estimated"``, ``"certified"``, or a Lipschitz constant of the features.
        lipschitz_samples: leading samples of each epoch, over all processes, whose constants are estimated.
        radii: lengths at which accuracies are logged; by default a quarter, half, once and twice ``epsilon``.
        method: of :func:`~lightning_flatness.functional.loss_increase_bound`: ``"bennett"``, ``"trace"`` or
            ``"refined"``.
        cubic_constant: of the Taylor bound, for ``bound/taylor_violation_rate``: by default the reported one; 0 for
            the part with the flatness alone, which is broken more often.
        logits_fn: maps the module and inputs to logits, by a forward like that of the validation step; by default the
            module's ``forward``.
        prog_bar: show the accuracy at ``epsilon``, or at the first of other ``radii``, in the progress bar.
        group: first part of the log keys; two monitors of one trainer need different ones.
        head: the last layer, affine in its input, its dotted name, or None for the ``nn.Linear`` called last in the
            first validation batch.
        inputs_and_targets: maps a batch to its inputs and class indices; by default the first two parts of a tuple or
            list, or the usual names of a dictionary.
        every_n_epochs: measure in the first epoch that has a validation, and then when n epochs have passed.
        max_samples: measure at most that many leading samples of each epoch, over all processes.
        dataloaders: indices of the dataloaders to measure; by default all.
        seed: of random numbers that the module itself draws when it runs again.
        on_error: what to do when measuring fails after the sanity check: ``"raise"``, or ``"warn"`` once and leave out
            that point of the curves.
        summary: end a fit with a table of the last and the smallest or largest values, one for all monitors that ask.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LocalRobustnessMonitor(epsilon=8 / 255)], logger=False)
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
        lipschitz: Lipschitz = "estimated",
        lipschitz_samples: int = 64,
        radii: Sequence[float | str] | None = None,
        method: BoundMethod = "bennett",
        cubic_constant: float | None = None,
        logits_fn: ModuleLogits | None = None,
        prog_bar: bool = False,
        group: str = keys.BOUND_GROUP,
        head: nn.Module | str | None = None,
        inputs_and_targets: InputsAndTargets | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        dataloaders: Sequence[int] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        summary: bool = True,
    ) -> None:
        self.threat = resolve_threat(threat, epsilon, norm, lower, upper, mean, std)
        self.epsilon = self.threat.largest_epsilon
        self.radii = named_radii([self.epsilon * factor for factor in _FACTORS] if radii is None else radii)
        self._source = LipschitzSource(lipschitz, self.threat)
        check_counts(lipschitz_samples=lipschitz_samples)
        self.lipschitz_samples = lipschitz_samples
        self.method = method
        self.cubic_constant = cubic_constant
        self._logits = logits_fn
        self._new_metrics()  # made once more for every measurement; here their arguments are checked
        lengths = list(self.radii.values())
        shown = self.epsilon if self.epsilon in lengths else lengths[0]
        super().__init__(
            group=group,
            head=head,
            inputs_and_targets=inputs_and_targets,
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            dataloaders=dataloaders,
            seed=seed,
            on_error=on_error,
            summary=summary,
            prog_bar_key=keys.accuracy_key(shown, certified=self._source.is_certificate) if prog_bar else None,
        )
        self._bound: dict[int, LocalRobustnessBound] = {}
        self._watch = BoundWatch(self.threat, self._source, group)
        self._batch = LatestBatch()
        self._compared: set[int] = set()
        self._constants = torch.zeros(0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get ready for another run."""
        super().setup(trainer, pl_module, stage)
        self._watch.setup()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the last curve to Weights & Biases, say so if a bound was violated, and leave the module as it was."""
        super().teardown(trainer, pl_module, stage)
        self._watch.warn_of_violation()

    def _forget(self) -> None:
        self._bound = {}
        self._watch.begin({})
        self._batch.forget()

    def _log_last_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        if curves := self._accuracies_over_epsilon(trainer, dataloader_idx):
            key = self._full_key(keys.BOUND_CURVE, trainer, dataloader_idx)
            log_accuracy_curves(run, key, trainer.global_step, "Accuracy over epsilon", curves)

    def _accuracies_over_epsilon(self, trainer: Trainer, index: int) -> dict[str, AccuracyCurve]:
        """Accuracies of the last measurement, and those that attacks left in the same."""
        rows = self._history.rows_of_stage(stage_of(trainer))
        attacks = [(one, keys.ATTACK_GROUP) for one in _attack_monitors(trainer)]
        found: dict[str, Any] = {}
        for monitor, own_group in ((self, keys.BOUND_GROUP), *attacks) if rows else ():
            for row in monitor.history():
                if all(row[name] == rows[-1][name] for name in ("stage", "epoch", "step")):
                    names = keys.plain_keys(
                        row,
                        own_group=own_group,
                        group=monitor.group,
                        testing=trainer.testing,
                        dataloader_idx=index,
                        num_dataloaders=self._selection.num_dataloaders,
                    )
                    found |= {plain: row[name] for name, plain in names.items()}
        return accuracies_over_epsilon(found, self.threat.norm)

    def _new_metrics(self) -> tuple[LocalRobustnessBound, LossBoundCheck]:
        bound = LocalRobustnessBound(
            self.radii, self.epsilon, method=self.method, certified=self._source.is_certificate
        )
        return bound, LossBoundCheck(self.method, cubic_constant=self.cubic_constant)

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "threat": asdict(self.threat),
            "lipschitz": self._source.lipschitz,
            "lipschitz_samples": self.lipschitz_samples,
            "radii": list(self.radii.values()),
            "method": self.method,
            "cubic_constant": self.cubic_constant,
            "own_logits": self._logits is not None,
        }

    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        device = pl_module.device
        samples = min(self.lipschitz_samples, TRIED_SAMPLES) if trainer.sanity_checking else self.lipschitz_samples
        self._source.begin(dataloader_indices, share_of(trainer, samples))
        none, classes = torch.zeros(0, 2, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        head = torch.zeros(2, 2, device=device)
        checks: dict[int, LossBoundCheck] = {}
        for index in dataloader_indices:
            bound, check = self._new_metrics()
            on_device(bound, device).update(none, classes, head, 0.0)  # a process may have no sample
            on_device(check, device).update(none, classes, head, none, none)
            self._bound[index], checks[index] = bound, check
        self._watch.begin(checks)
        self._batch.forget()
        self._compared = set()

    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        compares = self._needs_features(trainer) and dataloader_idx not in self._compared
        source = self._source.runs_module_on(dataloader_idx)
        # Where a batch is attacked later, the attack monitor runs the module, and tells of it meanwhile.
        return self._probe.runs_layer or compares or source or self._batch.is_attacked

    def _observe(self, observation: Observation) -> None:
        head, index, step = observation.head, observation.dataloader_idx, observation.step
        target = checked_target(observation, self.threat)
        inputs = step.inputs[: observation.samples].clone()  # recorded by autograd, which inference tensors cannot be
        with self._run_again(step):
            features_fn = self._features_function(step)
            if features_fn is not None and index not in self._compared:
                self._compared.add(index)
                self._memory.suffice(partial(check_features, features_fn, inputs, head.features), len(inputs))
            finite = finite_rows(head.features)
            constants = self._source.constants(step.module, features_fn, inputs, finite, index, self._memory)
        self._constants = constants
        count = len(constants)
        self._bound[index].update(head.logits[:count], target[:count], head.weight, constants)
        for results in self._batch.observed(observation):
            self._check_bounds(observation, results)

    def on_attacked(self, step: Step, results: Mapping[str, AttackResult]) -> None:
        """Compare the bound on the loss with what attacks have done to a batch, once both are known."""
        if not self._measuring or self._tolerance.failed:
            self._batch.forget()
            return
        with self._tolerance.tolerate(step.trainer), plain_tensors():
            observation = self._batch.attacked(step, results)
            if observation is not None:
                self._check_bounds(observation, results)

    def _check_bounds(self, observation: Observation, results: Mapping[str, AttackResult]) -> None:
        target = checked_target(observation, self.threat)
        with self._run_again(observation.step):
            features_fn = self._features_function(observation.step)
            assert features_fn is not None
            self._watch.add(observation, target, results, self._constants, features_fn, self._memory)

    def _features_function(self, step: Step) -> FeaturesFunction | None:
        """The features as a function of the inputs; None where nothing needs it."""
        if not self._needs_features(step.trainer):
            return None
        assert self.head_name is not None
        return self._memory.in_parts(features_function(step.trainer, step.module, self.head_name, self._logits))

    def _needs_features(self, trainer: Trainer) -> bool:
        return self._source.runs_module or bool(_attack_monitors(trainer))

    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        self._batch.forget()
        is_part = self.max_samples is not None or self._source.lipschitz == "estimated"
        values = {**self._bound[dataloader_idx].compute(), **self._watch.compute(dataloader_idx)}
        return {
            keys.bound_key(name): value
            for name, value in values.items()
            if is_part or not name.endswith(keys.INTERVAL_ENDS)
        }


def _attack_monitors(trainer: Trainer) -> list[AttackMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, AttackMonitor)]  # type: ignore[attr-defined]
