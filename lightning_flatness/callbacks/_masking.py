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

_COUNTED = "zero_gradient_rate"
"""A signal of every sample of every measurement."""


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
        self._thorough = self._warned = False
        self._room: dict[int, int] = {}
        self._means: dict[int, NamedMeans] = {}
        self._telling: dict[int, dict[str, float]] = {}
        self._seen: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._earlier: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def begin(self, dataloader_indices: Sequence[int], device: torch.device, share: int, *, thorough: bool) -> None:
        """Start another measurement.

        Args:
            dataloader_indices: what is measured.
            device: of the samples.
            share: most samples of this process.
            thorough: run the expensive rules too.
        """
        self._thorough = thorough
        self._room = dict.fromkeys(dataloader_indices, share)
        self._means = {index: on_device(NamedMeans(list(keys.MASKING_KEYS)), device) for index in dataloader_indices}
        self._seen = {index: [] for index in dataloader_indices}

    def add(self, logits_fn: LogitsFunction, batch: AttackedBatch, dataloader_idx: int) -> None:
        """Diagnose the samples of a batch that belong to the fixed part."""
        count = min(self._room[dataloader_idx], len(batch.inputs))
        if not count:
            return
        self._room[dataloader_idx] -= count
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
        self._means[dataloader_idx].update({
            keys.masking_key(name): (signal.sum, signal.count) for name, signal in diagnosis.signals.items()
        })
        if self._thorough:
            self._seen[dataloader_idx].append((inputs.cpu(), diagnosis.x_adv.cpu()))

    def compute(self, dataloader_idx: int) -> dict[str, Tensor]:
        """Reduce over processes; signals and alarm by their plain keys, nothing where no sample is correct."""
        computed = self._means[dataloader_idx].compute()
        if not computed:
            return {}
        values = {key: mean for key, (mean, _) in computed.items()}
        samples = computed[keys.masking_key(_COUNTED)][1]
        numbers = {key.split("/")[1]: float(value) for key, value in values.items()}
        if self._thorough:
            self._earlier[dataloader_idx] = self._seen[dataloader_idx]
            self._telling[dataloader_idx] = numbers
        # What an expensive rule has found holds until it runs again.
        reasons = masking_reasons({**self._telling.get(dataloader_idx, {}), **numbers}, int(samples))
        self.reasons[dataloader_idx] = reasons
        self._warn(reasons)
        return {**values, keys.ALARM: samples.new_tensor(float(bool(reasons)))}

    def state_dict(self) -> dict[str, Any]:
        """Return what the expensive rules have found last."""
        return {"telling": self._telling, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._telling = {index: dict(values) for index, values in state_dict["telling"].items()}
        self._warned = state_dict["warned"]

    def _earlier_adversarial(self, inputs: Tensor, dataloader_idx: int) -> Tensor | None:
        """Adversarial inputs of the last expensive measurement, where it saw the same inputs."""
        position, chunks = len(self._seen[dataloader_idx]), self._earlier.get(dataloader_idx, [])
        if position >= len(chunks) or not torch.equal(chunks[position][0], inputs.cpu()):
            return None
        return chunks[position][1].to(inputs.device)

    def _warn(self, reasons: Sequence[str]) -> None:
        if reasons and not self._warned:
            self._warned = True
            rank_zero_warn("The robustness may be masked gradients: " + " ".join(reasons))
