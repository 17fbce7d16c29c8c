"""Where the Lipschitz constants of a monitor come from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite, nan
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_flatness.attacks import ThreatModel
from lightning_flatness.callbacks._memory import Memory
from lightning_flatness.functional import InputNorm, certified_lipschitz, local_lipschitz
from lightning_flatness.functional._numerics import at_least_float32, chunks, numbers, wide

Lipschitz = float | Literal["estimated", "certified"]
FeaturesFunction = Callable[[Tensor], Tensor]

_NORMS: dict[str, InputNorm] = {"linf": "inf", "l2": 2}
_ITERATIONS = 10
"""Half of the estimates for digits are then within 0.1 % of what 100 steps give, the worst at 0.8 times that."""
_TOGETHER = 32
"""Samples whose Jacobians are iterated at a time: the graph of a graph is large."""


class LipschitzSource:
    """Lipschitz constants of the features, in the norm and the data's own units of a threat model.

    Args:
        lipschitz: a certificate of the user's, or how to come by a constant.
        threat: norm and normalisation.

    Raises:
        ValueError: if ``lipschitz`` is none of these.
    """

    def __init__(self, lipschitz: Lipschitz, threat: ThreatModel) -> None:
        if isinstance(lipschitz, str):
            if lipschitz not in {"estimated", "certified"}:
                raise ValueError(f"`lipschitz` must be a number, 'estimated' or 'certified', got {lipschitz!r}.")
        elif not (isfinite(lipschitz) and lipschitz >= 0):
            raise ValueError(f"`lipschitz` must be >= 0 and finite, got {lipschitz}.")
        self.lipschitz = lipschitz
        self._threat = threat
        self._room: dict[int, int] = {}
        self._certified: dict[torch.Size, float] = {}

    @property
    def is_certificate(self) -> bool:
        """Whether the constants are upper bounds."""
        return self.lipschitz != "estimated"

    @property
    def runs_module(self) -> bool:
        """Whether the module itself is looked at."""
        return isinstance(self.lipschitz, str)

    def runs_module_on(self, dataloader_idx: int) -> bool:
        """Whether constants of another batch need the module."""
        return self.runs_module and (self.is_certificate or self._room[dataloader_idx] > 0)

    def begin(self, dataloader_indices: Sequence[int], share: int) -> None:
        """Start another measurement, with other weights.

        Args:
            dataloader_indices: what is measured.
            share: most samples of this process whose constants are estimated.
        """
        self._certified = {}
        self._room = dict.fromkeys(dataloader_indices, share)

    def constants(
        self,
        module: LightningModule,
        features_fn: FeaturesFunction | None,
        inputs: Tensor,
        finite: Tensor,
        dataloader_idx: int,
        memory: Memory,
    ) -> Tensor:
        """Constants of the leading samples of a batch; of all, unless they are estimated; NaN where there is none.

        Args:
            module: under evaluation.
            features_fn: maps inputs to features; None only where a constant is given.
            inputs: as the module sees them.
            finite: samples whose features are finite; the weights of a training that diverges have no constant.
            dataloader_idx: of the batch.
            memory: says how many samples may go through the module at a time, where their number matters: a certificate
                is the same for all, and is not tried again.
        """
        if not isinstance(self.lipschitz, str):
            return numbers(float(self.lipschitz), inputs).expand(len(inputs))
        assert features_fn is not None
        if self.lipschitz == "certified":
            bound = self._certify(module, features_fn, inputs) if bool(finite.any()) else nan
            return numbers(bound, inputs).expand(len(inputs))
        count = min(self._room[dataloader_idx], len(inputs))
        finite = finite[:count]
        estimates = torch.full_like(wide(inputs[:count].flatten(1)[:, 0]), nan)
        estimate = partial(self._estimate, module, features_fn, inputs[:count][finite], memory)
        estimates[finite] = memory.suffice(estimate, min(count, _TOGETHER))
        self._room[dataloader_idx] -= count
        return estimates

    def _certify(self, module: LightningModule, features_fn: FeaturesFunction, inputs: Tensor) -> float:
        shape = inputs.shape[1:]
        if shape not in self._certified:
            features = _Features(module, features_fn, inputs[:1], self._threat)
            try:
                bound = certified_lipschitz(features, features.still(), norm=_NORMS[self._threat.norm])
            except ValueError as error:
                raise ValueError(f"{error} Here, pass `lipschitz='estimated'`.") from error
            self._certified[shape] = bound
        return self._certified[shape]

    def _estimate(
        self, module: LightningModule, features_fn: FeaturesFunction, inputs: Tensor, memory: Memory
    ) -> Tensor:
        estimates = [wide(inputs.new_zeros(0))]
        together = min(_TOGETHER, memory.rows or _TOGETHER)
        for rows in chunks(len(inputs), together) if len(inputs) else ():
            features = _Features(module, features_fn, inputs[rows], self._threat)
            estimates.append(
                local_lipschitz(features, features.still(), norm=_NORMS[self._threat.norm], iterations=_ITERATIONS)
            )
        return torch.cat(estimates)


class _Features(nn.Module):
    """Features as a function of how far inputs are moved, in data units."""

    def __init__(
        self, module: LightningModule, features_fn: FeaturesFunction, inputs: Tensor, threat: ThreatModel
    ) -> None:
        super().__init__()
        # A part of this one under its own name, which messages show.
        self.add_module(type(module).__name__, module)
        self._features_fn = features_fn
        self._inputs = inputs
        self._std = replace(threat, mean=None).in_data_units(torch.ones_like(inputs[:1]))

    def still(self) -> Tensor:
        """No displacement."""
        return at_least_float32(torch.zeros_like(self._inputs))

    @override
    def forward(self, delta: Tensor) -> Tensor:
        return self._features_fn((wide(self._inputs) + wide(delta) / self._std).to(self._inputs.dtype))
