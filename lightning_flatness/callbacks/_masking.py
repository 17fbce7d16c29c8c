"""The diagnosis of gradient masking on a fixed part of the validation data."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_flatness.attacks import LogitsFunction, ThreatModel, masking_reasons, masking_signals
from lightning_flatness.callbacks._attack_record import AttackedBatch
from lightning_flatness.callbacks._module import on_device
from lightning_flatness.metrics._named_means import NamedMeans
from lightning_flatness.tracking import keys


class MaskingWatch:
    """Signals of gradient masking over the leading samples of every measured epoch.

    Args:
        threat: the ball and the valid range.

    Attributes:
        reasons: why the alarm is on, in words, for each dataloader.
    """

    def __init__(self, threat: ThreatModel) -> None:
        self.reasons: dict[int, list[str]] = {}
        self._threat = threat
        self._thorough = self._remembers = self._warned = False
        self._room: dict[int, int] = {}
        self._means: dict[int, NamedMeans] = {}
        self._telling: dict[int, dict[str, tuple[float, float]]] = {}
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._earlier: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def begin(
        self, dataloader_indices: Sequence[int], device: torch.device, share: int, *, thorough: bool, remembers: bool
    ) -> None:
        """Start another measurement.

        Args:
            dataloader_indices: what is measured.
            device: of the samples.
            share: most samples of this process.
            thorough: run the expensive rules too.
            remembers: go on from the measurement before, and keep this one for the next.
        """
        self.reasons = {}
        self._remembers = remembers
        self._thorough = thorough
        self._room = dict.fromkeys(dataloader_indices, share)
        self._means = {index: on_device(NamedMeans(list(keys.MASKING_KEYS)), device) for index in dataloader_indices}
        for means in self._means.values():
            means.update({})  # a process may have no sample
        self._seen = {index: [] for index in dataloader_indices}

    def add(self, dataloader_idx: int, logits_fn: LogitsFunction, batch: AttackedBatch) -> None:
        """Diagnose the samples of a batch that belong to the fixed part."""
        count = min(self._room[dataloader_idx], len(batch.inputs))
        if not count:
            return
        inputs = batch.inputs[:count]
        diagnosis = masking_signals(
            logits_fn,
            inputs,
            batch.target[:count],
            self._threat,
            generator=batch.generator,
            clean_logits=batch.clean_logits[:count],
            thorough=self._thorough,
            earlier=self._earlier_adversarial(inputs, dataloader_idx) if self._thorough else None,
        )
        seen = (inputs.cpu(), diagnosis.x_adv.cpu()) if self._thorough else None
        self._room[dataloader_idx] -= count
        self._means[dataloader_idx].update({
            keys.masking_key(name): (signal.sum, signal.count) for name, signal in diagnosis.signals.items()
        })
        if seen is not None:
            self._seen[dataloader_idx].append(seen)

    def compute(self, dataloader_idx: int) -> dict[str, Tensor]:
        """Reduce over processes; signals and alarm by their plain keys, nothing where no sample is correct."""
        computed = self._means[dataloader_idx].compute()
        if not computed:
            return {}
        seen = {key: (float(mean), float(count)) for key, (mean, count) in computed.items()}
        # What an expensive rule has found holds until it runs again.
        known = {**(self._telling.get(dataloader_idx, {}) if self._remembers else {}), **seen}
        if self._thorough and self._remembers:
            self._earlier[dataloader_idx] = self._seen[dataloader_idx]
            self._telling[dataloader_idx] = {key: seen[key] for key in keys.EXPENSIVE_MASKING_KEYS if key in seen}
        means, counts = ({key.split("/")[1]: pair[part] for key, pair in known.items()} for part in (0, 1))
        reasons = masking_reasons(means, {name: int(count) for name, count in counts.items()})
        self.reasons[dataloader_idx] = reasons
        self._warn(reasons)
        values = {key: mean for key, (mean, _) in computed.items()}
        return {**values, keys.ALARM: torch.tensor(float(bool(reasons)))}

    def state_dict(self) -> dict[str, Any]:
        """Return what the expensive rules have found last."""
        return {"telling": self._telling, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._telling = {index: dict(values) for index, values in state_dict["telling"].items()}
        self._warned = state_dict["warned"]

    def warn_again(self) -> None:
        """Say it again in the next stage."""
        self._warned = False

    def _earlier_adversarial(self, inputs: Tensor, dataloader_idx: int) -> Tensor | None:
        """Adversarial inputs of the last expensive measurement, where it saw the same inputs."""
        if not self._remembers:
            return None
        position, chunks = len(self._seen[dataloader_idx]), self._earlier.get(dataloader_idx, [])
        if position >= len(chunks) or not torch.equal(chunks[position][0], inputs.cpu()):
            return None
        return chunks[position][1].to(inputs.device)

    def _warn(self, reasons: Sequence[str]) -> None:
        if reasons and not self._warned:
            self._warned = True
            lines = "".join(f"\n- {reason}" for reason in reasons)
            rank_zero_warn(f"Ordinary attacks on the cross-entropy may be fooled by masked gradients:{lines}")
