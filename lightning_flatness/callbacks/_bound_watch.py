"""The bound on the loss and the constants behind it, beside what attacks have done."""

from collections.abc import Mapping
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_flatness.attacks import AttackResult, ThreatModel
from lightning_flatness.callbacks._head_monitor import Observation
from lightning_flatness.callbacks._lipschitz import FeaturesFunction, LipschitzSource
from lightning_flatness.callbacks._memory import Memory
from lightning_flatness.metrics import LossBoundCheck


class BoundWatch:
    """Whether attacked samples stay below the bound on their loss, and their features within reach.

    Args:
        threat: measures how far inputs were moved.
        source: of the constants.
        group: of the monitor, in the warnings.
    """

    def __init__(self, threat: ThreatModel, source: LipschitzSource, group: str) -> None:
        self._threat = threat
        self._source = source
        self._group = group
        self._metrics: dict[int, LossBoundCheck] = {}
        self._violation_rate = 0.0
        self._said_no_certificate = False

    def setup(self) -> None:
        """Get ready for another run."""
        self._violation_rate = 0.0

    def begin(self, metrics: dict[int, LossBoundCheck]) -> None:
        """Start another measurement.

        Args:
            metrics: one for each dataloader.
        """
        self._metrics = metrics

    def add(
        self,
        observation: Observation,
        target: Tensor,
        results: Mapping[str, AttackResult],
        constants: Tensor,
        features_fn: FeaturesFunction,
        memory: Memory,
    ) -> None:
        """Take in what attacks have done to a batch.

        Args:
            observation: of the batch.
            target: its class indices.
            results: by the label of the attack.
            constants: of the leading samples.
            features_fn: maps inputs to features.
            memory: says how many samples may go through the module at a time.
        """
        head, inputs = observation.head, observation.step.inputs
        for result in results.values():
            rows = slice(min(len(result.x_adv), observation.samples))
            x_adv, features = result.x_adv[rows], head.features[rows]
            # Batches of another size round otherwise: what was not attacked has not moved.
            moved = (x_adv != inputs[rows]).flatten(1).any(1, keepdim=True)
            features_adv = torch.where(moved, memory.suffice(partial(features_fn, x_adv), len(x_adv)), features)
            distance = self._threat.distance(x_adv, inputs[rows])
            reach = torch.full_like(distance, torch.nan)
            count = min(len(reach), len(constants))
            reach[:count] = constants[:count] * distance[:count]
            self._metrics[observation.dataloader_idx].update(
                head.logits[rows], target[rows], head.weight, features, features_adv, reach
            )

    def compute(self, dataloader_idx: int) -> dict[str, Tensor]:
        """Reduce over processes; says so where a certificate is none."""
        values = self._metrics[dataloader_idx].compute()
        self._violation_rate = max(self._violation_rate, float(values.get("violation_rate", 0)))
        if self._source.is_certificate:
            self._warn_no_certificate(float(values.get("lipschitz_violation_rate", 0)))
        return values

    def warn_of_violation(self) -> None:
        """Say so where a bound was violated in this run."""
        if self._violation_rate > 0:
            rank_zero_warn(
                f"The loss of up to {self._violation_rate:.2%} of the attacked samples grew by more than the bound "
                f"allows ({self._group}/violation_rate), which is impossible: please report it."
            )

    def _warn_no_certificate(self, rate: float) -> None:
        if rate > 0 and not self._said_no_certificate:
            self._said_no_certificate = True
            rank_zero_warn(
                f"Attacks moved the features of {rate:.1%} of the samples farther than "
                f"lipschitz={self._source.lipschitz!r} allows: it is no certificate, and {self._group}/certified_* are "
                "wrong. Its units are those of the features per unit of `epsilon`, in `norm`."
            )
