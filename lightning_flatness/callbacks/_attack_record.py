"""What several attacks have done to the samples of one dataloader."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import MaxMetric

from lightning_flatness.attacks import AttackResult
from lightning_flatness.attacks.losses import cross_entropy
from lightning_flatness.callbacks._module import on_device
from lightning_flatness.metrics import AttackSuccessRate, RobustAccuracy
from lightning_flatness.tracking import keys


class AttackedBatch(NamedTuple):
    """The samples of a batch that are attacked, and what the model says of them."""

    inputs: Tensor
    target: Tensor
    clean_logits: Tensor
    generator: torch.Generator


class AttackRecord:
    """Metrics of every attack, and of the worst case over them.

    Args:
        labels: of the attacks.
        loss_threshold: see :class:`~lightning_flatness.AttackSuccessRate`.
        num_classes: see :class:`~lightning_flatness.AttackSuccessRate`.
        device: of the samples.
    """

    def __init__(
        self, labels: Sequence[str], loss_threshold: float, num_classes: int | None, device: torch.device
    ) -> None:
        self._success = {label: AttackSuccessRate(loss_threshold, num_classes) for label in labels}
        self._seconds = dict.fromkeys(labels, 0.0)
        self._worst = RobustAccuracy(labels) if len(labels) > 1 else None
        self._device = device
        none = torch.zeros(0, dtype=torch.bool, device=device)
        for metric in self._success.values():
            on_device(metric, device).update(none, none, target=none.long())  # a process may have no sample
        if self._worst is not None:
            on_device(self._worst, device).update(dict.fromkeys(labels, none), none)

    def add(self, results: Mapping[str, AttackResult], seconds: Mapping[str, float], batch: AttackedBatch) -> None:
        """Take in what the attacks have done to one batch.

        Args:
            results: of each attack.
            seconds: that each attack took.
            batch: what was attacked.
        """
        clean_loss = cross_entropy(batch.clean_logits, batch.target.long())
        for label, result in results.items():
            self._seconds[label] += seconds[label]
            self._success[label].update(
                result.success,
                result.initially_correct,
                target=batch.target,
                clean_loss=clean_loss,
                adv_loss=result.loss,
                steps_to_fool=result.steps_to_fool,
                nonfinite=result.nonfinite,
                rejected=result.rejected,
            )
        if self._worst is not None:
            correct = torch.stack([result.initially_correct for result in results.values()]).all(0)
            self._worst.update({label: result.success for label, result in results.items()}, correct)

    def compute(self, *, intervals: bool) -> dict[str, Tensor]:
        """Reduce over processes.

        Args:
            intervals: with the ends of the confidence intervals.

        Returns:
            Values by plain key.
        """
        values: dict[str, Tensor] = {}
        for label, metric in self._success.items():
            quantities = {**metric.compute(), keys.SECONDS: self._slowest(label)}
            quantities |= {
                keys.class_key(name, index): rate
                for name in (keys.SUCCESS_RATE, keys.ROBUST_ACCURACY)
                for index, rate in enumerate(metric.per_class.get(name, torch.zeros(0)).cpu())
            }
            values |= {keys.attack_key(label, name): value for name, value in quantities.items()}
        if self._worst is not None:
            values |= self._worst_case(self._worst.compute())
        return {key: value for key, value in values.items() if intervals or not key.endswith(keys.INTERVAL_ENDS)}

    def _worst_case(self, computed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            keys.attack_key(keys.WORST_CASE, f"{keys.ROBUST_ACCURACY}{end}"): computed[f"{keys.WORST_CASE}{end}"]
            for end in ("", *keys.INTERVAL_ENDS)
            if keys.WORST_CASE in computed
        }

    def _slowest(self, label: str) -> Tensor:
        slowest = on_device(MaxMetric(), self._device)
        slowest.update(self._seconds[label])
        value: Tensor = slowest.compute()
        return value
