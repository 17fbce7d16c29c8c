"""A few adversarial examples to look at."""

import torch
from torch import Tensor

from lightning_flatness.attacks import AttackResult, LogitsFunction, ThreatModel
from lightning_flatness.callbacks._attack_record import AttackedBatch
from lightning_flatness.tracking.wandb_media import AdversarialExample


class Examples:
    """The first fooled samples of an evaluation.

    Args:
        count: most samples kept of each attack.
        threat: knows the data's own units.
    """

    def __init__(self, count: int, threat: ThreatModel) -> None:
        self.count = count
        self._threat = threat
        self.rows: list[AdversarialExample] = []

    def collect(
        self,
        attack: str,
        result: AttackResult,
        logits_fn: LogitsFunction,
        batch: AttackedBatch,
    ) -> None:
        """Keep fooled samples of a batch while there is room; runs the model on those only.

        Args:
            attack: label of the attack.
            result: of the attack.
            logits_fn: maps inputs to logits.
            batch: what was attacked.
        """
        room = self.count - sum(row.attack == attack for row in self.rows)
        if room <= 0:
            return
        fooled = result.success.nonzero().squeeze(1)[:room]
        if not len(fooled):
            return
        x_adv = result.x_adv[fooled]
        with torch.no_grad():
            confidence, prediction = logits_fn(x_adv).float().softmax(1).max(1)
        clean_confidence, clean_prediction = batch.clean_logits[fooled].float().softmax(1).max(1)
        numbers = (batch.target[fooled], clean_prediction, clean_confidence, prediction, confidence)
        columns = [column.tolist() for column in numbers]
        tensors = zip(self._shown(batch.inputs[fooled]), self._shown(x_adv), strict=True)
        self.rows += [
            AdversarialExample(attack, *values, *pair) for *values, pair in zip(*columns, tensors, strict=True)
        ]

    def _shown(self, inputs: Tensor) -> Tensor:
        return self._threat.in_data_units(inputs).float().cpu()
