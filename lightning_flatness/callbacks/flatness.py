"""Relative flatness at every validation epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_flatness.callbacks._batches import InputsAndTargets
from lightning_flatness.callbacks._head_monitor import HeadMonitor, Observation
from lightning_flatness.callbacks._module import on_device
from lightning_flatness.callbacks._monitor import OnError
from lightning_flatness.functional import FlatnessVariant
from lightning_flatness.functional._checks import are_probabilities, check_num_classes, check_variant
from lightning_flatness.functional.losses import CrossEntropy, LogitLoss, LossFunction, LossName, resolve_loss
from lightning_flatness.metrics import HeadTopEigenvalue, RelativeFlatness
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.wandb_media import log_histograms

_NO_SAMPLE = ((0, 1), (1, 1), (0, 1))
"""Shapes of features, weight and logits."""
_LARGEST_HEAD = 2**24
"""Most weights of a head whose top eigenvalue is computed: the method keeps several vectors of that length."""


class RelativeFlatnessMonitor(HeadMonitor):
    r"""Log how flat the loss is in the weight of the classifier's last layer; small is flat.

    Features and logits are those of the module's own validation (and test) step: nothing runs twice, and training is
    bit for bit what it is without the callback. The values are logged under the keys of
    :data:`~lightning_flatness.tracking.keys.FLATNESS_KEYS` before ``ModelCheckpoint`` and ``EarlyStopping`` look at
    them. With a ``WandbLogger``, the run also gets summaries, the callback's configuration, and histograms of
    ``log10 κ`` over correctly and wrongly classified samples. Of a module sharded by FSDP2, only the head's weight is
    copied; a head that is no ``nn.Linear`` is run again, with all parameters on every process.

    Args:
        variant: ``"neuronwise"``, ``"layerwise"`` or ``"maxeig"``; see
            :func:`~lightning_flatness.functional.relative_flatness`.
        loss: the training loss: a name, a torch loss module, a
            :class:`~lightning_flatness.functional.losses.LogitLoss`, or a function of ``(logits, target)`` that returns
            one loss per sample.
        include_bias: count the head's bias among its parameters.
        top_eigenvalue_samples: samples per process for ``flatness/top_eigenvalue``; 0 switches it off.
        num_classes: number of classes, to log the mean κ of each class as ``relative_flatness_class_{k}``.
        log_histograms: send histograms to Weights & Biases.
        prog_bar: show the mean relative flatness in the progress bar.
        group: first part of the log keys; two monitors of one trainer need different ones.
        head: the last layer, affine in its input, its dotted name, or None for the ``nn.Linear`` called last in the
            first validation batch. Its calls within one step may be chunks of the batch, which are put together, or
            views of it, over which is averaged.
        inputs_and_targets: maps a batch to its inputs and targets; by default the first two parts of a tuple or list,
            or the usual names of a dictionary. Leading dimensions of targets are those of the logits.
        every_n_epochs: measure in the first epoch that has a validation, and then when n epochs have passed. In between
            ``ModelCheckpoint`` and ``EarlyStopping`` see the last value again.
        max_samples: measure at most that many leading samples of each epoch, over all processes.
        dataloaders: indices of the dataloaders to measure; by default all.
        seed: not used here: nothing is random.
        on_error: what to do when measuring fails after the sanity check: ``"raise"``, or ``"warn"`` once and leave out
            that point of the curves.
        summary: end a fit with a table of the last and the smallest or largest values, one for all monitors that ask.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RelativeFlatnessMonitor()], logger=False)
    """

    def __init__(
        self,
        variant: FlatnessVariant = "neuronwise",
        loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
        *,
        include_bias: bool = False,
        top_eigenvalue_samples: int = 256,
        num_classes: int | None = None,
        log_histograms: bool = True,
        prog_bar: bool = False,
        group: str = keys.FLATNESS_GROUP,
        head: nn.Module | str | None = None,
        inputs_and_targets: InputsAndTargets | None = None,
        every_n_epochs: int = 1,
        max_samples: int | None = None,
        dataloaders: Sequence[int] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        summary: bool = True,
    ) -> None:
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
            prog_bar_key=keys.RELATIVE_FLATNESS if prog_bar else None,
        )
        if top_eigenvalue_samples < 0:
            raise ValueError(f"`top_eigenvalue_samples` must be >= 0, got {top_eigenvalue_samples}.")
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.top_eigenvalue_samples = top_eigenvalue_samples
        self.log_histograms = log_histograms
        self.variant = check_variant(variant)
        self.loss = resolve_loss(loss)
        self._is_default_loss = loss == "cross_entropy"
        self.include_bias = include_bias
        self._flatness: dict[int, RelativeFlatness] = {}
        self._top_eigenvalue: dict[int, HeadTopEigenvalue] = {}
        self._nonfinite_warned = self._large_head_said = self._saw_target = False

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "variant": self.variant,
            "loss": repr(self.loss),
            "include_bias": self.include_bias,
            "top_eigenvalue_samples": self.top_eigenvalue_samples,
            "num_classes": self.num_classes,
        }

    def _begin(self, trainer: Trainer, pl_module: LightningModule, dataloader_indices: Sequence[int]) -> None:
        del trainer
        device = pl_module.device
        settings: dict[str, Any] = {
            "include_bias": self.include_bias,
            "num_classes": self.num_classes,
            "validate_args": False,
        }
        self._flatness = {
            index: on_device(RelativeFlatness(self.variant, self.loss, **settings), device)
            for index in dataloader_indices
        }
        self._top_eigenvalue = {}
        if self.top_eigenvalue_samples:
            self._top_eigenvalue = {
                index: HeadTopEigenvalue(self.top_eigenvalue_samples, self.loss, include_bias=self.include_bias).to(
                    device
                )
                for index in dataloader_indices
            }

    def _observe(self, observation: Observation) -> None:
        head, target, index, *_ = observation
        self._flatness[index].update(head.features, head.weight, head.logits, target, head.bias)
        if target is not None and not self._saw_target:
            self._saw_target = True
            self._warn_of_regression(head.logits, target)
        if head.weight.numel() > _LARGEST_HEAD:
            self._say_head_is_large(head.weight.numel())
        elif self._top_eigenvalue:
            self._top_eigenvalue[index].update(head.features, head.logits, target)

    def _warn_of_regression(self, logits: Tensor, target: Tensor) -> None:
        """Look at one batch only, since that waits for the device."""
        if not (isinstance(self.loss, CrossEntropy) and target.is_floating_point()):
            return
        if not are_probabilities(target.reshape(logits.shape)):
            rank_zero_warn(
                f"{type(self).__name__} measures the flatness of the cross-entropy, but the targets are numbers that "
                "are no probabilities of classes; pass `loss=` the training loss, e.g. 'mse' for a regression."
            )

    def _say_head_is_large(self, weights: int) -> None:
        if self._top_eigenvalue and not self._large_head_said:
            self._large_head_said = True
            rank_zero_info(
                f"{keys.TOP_EIGENVALUE} is left out: the head has {weights:,} weights, more than {_LARGEST_HEAD:,}."
            )

    def _values(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        metric, eigenvalue = self._flatness[dataloader_idx], self._top_eigenvalue.get(dataloader_idx)
        if not metric.update_called:  # a process may have no sample
            metric.update(*(torch.zeros(shape, device=metric.device) for shape in _NO_SAMPLE))
        if eigenvalue is not None and not eigenvalue.update_called:
            eigenvalue.update(*(torch.zeros(0, 1, device=metric.device) for _ in range(2)))
        values = {f"{keys.FLATNESS_GROUP}/{name}": value for name, value in metric.compute().items()}
        of_classes = metric.per_class.get("relative_flatness", torch.zeros(0))
        values |= {keys.class_key(keys.RELATIVE_FLATNESS, index): value for index, value in enumerate(of_classes)}
        self._warn_nonfinite(int(values[keys.NONFINITE]))
        if keys.RELATIVE_FLATNESS in values and eigenvalue is not None:
            values[keys.TOP_EIGENVALUE] = eigenvalue.compute()
        return values

    def _warn_nonfinite(self, count: int) -> None:
        if count and not self._nonfinite_warned:
            self._nonfinite_warned = True
            rank_zero_warn(
                f"{count} samples have features, logits or weights that are NaN or infinite; they are left out of the "
                f"flatness values and counted in {self.group}/nonfinite."
            )

    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        if self.log_histograms:
            histograms = self._flatness[dataloader_idx].histograms
            log_histograms(
                run,
                {
                    self._full_key(keys.histogram_key(part), trainer, dataloader_idx): histogram
                    for part, histogram in histograms.items()
                },
            )

    def _expects_logits(self) -> bool:
        return self._is_default_loss
