"""What is measured at every point of a path, from the forward passes that an attack makes anyway."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_flatness.attacks._oracle import LogitsFunction, usable
from lightning_flatness.attacks.losses import cross_entropy, margin
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._affine import RawCall, head_call, head_rows, recorded_call
from lightning_flatness.functional._numerics import at_least_float32, sq_norm, wide
from lightning_flatness.functional.flatness import flatness_factors, unchecked_relative_flatness
from lightning_flatness.functional.losses import LogitLoss
from lightning_flatness.functional.trajectory import TrajectoryPoints

_BUFFER_ELEMENTS = 2**22
"""Numbers of features and logits that wait to be evaluated together: 16 MiB in float32."""


@dataclass(frozen=True, eq=False)
class _Point:
    features: Float[Tensor, "batch dim"]
    logits: Float[Tensor, "batch classes"]  # of the head
    output: Float[Tensor, "batch classes"]  # of the model
    distance: Float[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class _Clean:
    inputs: Float[Tensor, "batch *shape"]
    target: Int[Tensor, " batch"]
    features: Float[Tensor, "batch dim"]


class TrajectoryRecorder:
    """The model, whose every call leaves what entered its head, and the evaluation of the points that count.

    Args:
        logits_fn: the model.
        head: its last layer, linear or at least affine.
        threat: measures the perturbations.
        inputs: clean inputs.
        target: true classes.
        loss: whose flatness is measured.

    """

    def __init__(
        self,
        logits_fn: LogitsFunction,
        head: nn.Module,
        threat: ThreatModel,
        inputs: Tensor,
        target: Tensor,
        loss: LogitLoss,
    ) -> None:
        self._logits_fn = logits_fn
        self._head = head
        self._threat = threat
        self._inputs, self._target = inputs, target
        self._loss = loss
        self._calls: list[RawCall] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self._weight: Tensor | None = None
        self._clean: _Clean | None = None
        self._waiting: list[_Point] = []
        self._parts: list[TrajectoryPoints] = []

    def __call__(self, inputs: Tensor) -> Any:
        self._calls = []
        with self._head.register_forward_hook(self._keep, with_kwargs=True):
            output = self._logits_fn(inputs)
        if isinstance(output, Tensor):
            self._last = *self._one_row_each(len(inputs)), output.detach()
        return output

    def _keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self._calls.append(recorded_call(layer, next(iter((*args, *kwargs.values()))), output))

    def _one_row_each(self, batch: int) -> tuple[Tensor, Tensor]:
        """Features and logits of the head, which may have been called on consecutive parts of the batch."""
        name = type(self._head).__name__
        rows = [head_rows(self._head, call.inputs, call.outputs, name) for call in self._calls]
        shapes = [tuple(features.shape) for features, _ in rows]
        if not rows or any(len(shape) != 2 for shape in shapes) or sum(shape[0] for shape in shapes) != batch:
            raise ValueError(
                f"`head` must see one row for each of the {batch} samples, got {shapes or 'no call'}; "
                "pass the layer that makes the logits."
            )
        if self._weight is None:
            self._weight = head_call(self._head, self._calls[0], name).weight
        features, logits = zip(*rows, strict=True)
        return torch.cat(features), torch.cat(logits)

    def visit(self, rows: Int[Tensor, " batch"], x: Float[Tensor, "batch *shape"], step: int) -> None:
        """Take in the point that the model was called with last; the first one is clean, the rows stay the same.

        Args:
            rows: of the batch.
            x: where they are.
            step: not used: points come one after the other.
        """
        del step
        assert self._last is not None
        features, logits, output = map(at_least_float32, self._last)
        if self._clean is None:
            self._clean = _Clean(self._inputs[rows], self._target[rows].long(), features)
        distance = self._threat.distance(x, self._clean.inputs)
        self._waiting.append(_Point(features, logits, output, distance))
        if len(self._waiting) * (features.numel() + 2 * logits.numel()) >= _BUFFER_ELEMENTS:
            self._evaluate()

    def points(self, count: int) -> TrajectoryPoints:
        """All points so far.

        Args:
            count: number of points where there is no sample.
        """
        self._evaluate()
        return TrajectoryPoints.cat(self._parts) if self._parts else TrajectoryPoints.empty(count, self._inputs)

    def _evaluate(self) -> None:
        if not self._waiting or self._clean is None or self._weight is None:
            return
        points, self._waiting = self._waiting, []
        with torch.inference_mode(mode=False), torch.no_grad():
            self._parts.append(_evaluated(points, self._clean, self._weight, self._loss))


def _evaluated(points: Sequence[_Point], clean: _Clean, weight: Tensor, loss: LogitLoss) -> TrajectoryPoints:
    """All quantities of several points at once."""
    features, logits = torch.cat([point.features for point in points]), torch.cat([point.logits for point in points])
    output, target = wide(torch.cat([point.output for point in points])), clean.target.repeat(len(points))
    factors = flatness_factors(features, weight, logits, target, loss=loss)
    maxeig = unchecked_relative_flatness(features, weight, logits, target, "maxeig", loss, None)
    flipped: Bool[Tensor, " rows"] = usable(output) & (output.argmax(1) != target)
    moved = features - clean.features.repeat(len(points), 1)
    values = TrajectoryPoints(
        log_neuronwise=factors.neuronwise().log(),
        log_layerwise=factors.layerwise().log(),
        log_maxeig=maxeig.log(),
        loss=cross_entropy(output, target),
        confidence=output.softmax(1).amax(1),
        margin=margin(output, target),
        flipped=flipped,
        feature_norm=factors.feature_norm,
        feature_distance=sq_norm(moved).sqrt(),
        input_distance=torch.cat([point.distance for point in points]),
    )
    return TrajectoryPoints(*(value.view(len(points), -1) for value in values))
