"""Robust accuracy over epsilon at every validation epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_flatness.attacks import AdaptiveAttack, LogitsFunction, first_fooling_epsilon
from lightning_flatness.callbacks._attack_record import AttackedBatch
from lightning_flatness.callbacks._module import on_device
from lightning_flatness.callbacks._threat import check_below_range, lengths
from lightning_flatness.functional._checks import check_epsilons
from lightning_flatness.metrics import RobustAccuracyCurve
from lightning_flatness.tracking import keys
from lightning_flatness.tracking._choice import evenly_chosen

_MOST_CURVES = 8
"""Most epochs in one chart."""


class EpsilonCurve:
    """Attacks at growing epsilons, by bisection, and the accuracy that each of them leaves.

    Args:
        attack: run at each epsilon.
        epsilons: radii, in increasing order.
    """

    def __init__(self, attack: AdaptiveAttack, epsilons: Sequence[float]) -> None:
        check_epsilons(epsilons)
        self.epsilons = tuple(epsilons)
        self.keys = [
            keys.attack_key(keys.threat_label(attack.threat.norm, epsilon), keys.ROBUST_ACCURACY)
            for epsilon in epsilons
        ]
        self._attack = attack
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"`epsilons` must differ in their first digits, which are in the keys, got {epsilons}.")
        self._metrics: dict[int, RobustAccuracyCurve] = {}

    def begin(self, dataloader_indices: Sequence[int], device: torch.device) -> None:
        """Forget the last epoch."""
        self._metrics = {index: on_device(RobustAccuracyCurve(self.epsilons), device) for index in dataloader_indices}
        none = torch.zeros(0, dtype=torch.bool, device=device)
        for metric in self._metrics.values():
            metric.update(none.long(), none)  # a process may have no sample

    def add(self, dataloader_idx: int, logits_fn: LogitsFunction, batch: AttackedBatch) -> None:
        """Attack one batch."""
        result = first_fooling_epsilon(
            lambda threat: replace(self._attack, threat=threat),
            logits_fn,
            batch.inputs,
            batch.target,
            self._attack.threat,
            self.epsilons,
            generator=batch.generator,
            clean_logits=batch.clean_logits,
        )
        self._metrics[dataloader_idx].update(result.index, result.initially_correct)

    def over_epochs(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[float]]:
        """Curves of a few epochs, evenly chosen.

        Args:
            rows: of a monitor's history.
            names: keys of the robust accuracies in them.
        """
        complete = [row for row in rows if all(name in row for name in names)]
        shown = evenly_chosen(complete, _MOST_CURVES)
        return {f"epoch {row['epoch']}, step {row['step']}": [row[name] for name in names] for row in shown}

    def compute(self, dataloader_idx: int) -> Mapping[str, Tensor]:
        """Reduce over processes; robust accuracy at each epsilon by its plain key."""
        curve = self._metrics[dataloader_idx].compute()
        if "robust_accuracy" not in curve:
            return {}
        _clean, *robust = curve["robust_accuracy"]
        return dict(zip(self.keys, robust, strict=True))


def build_epsilon_curve(
    attack: AdaptiveAttack | None, epsilons: Sequence[float | str], *, taken: Sequence[str]
) -> EpsilonCurve | None:
    """Curve of what a monitor's user writes; None where that is nothing.

    Args:
        attack: run at each epsilon.
        epsilons: radii, in increasing order, as numbers or fractions.
        taken: labels of other attacks, under whose keys no radius may be logged.

    Raises:
        ValueError: if there are radii but no attack, a radius is out of range, or a label is taken.
    """
    radii = lengths("epsilons", epsilons)
    if not radii:
        return None
    if attack is None:
        raise ValueError("`epsilons` needs the default attack; pass `budget=`.")
    for radius in radii:
        check_below_range(attack.threat, radius, name="epsilons")
    curve = EpsilonCurve(attack, radii)
    if clashes := {keys.threat_label(attack.threat.norm, radius) for radius in radii} & set(taken):
        raise ValueError(f"`attacks` must have labels of their own, got {min(clashes)!r}, a radius of `epsilons`.")
    return curve
