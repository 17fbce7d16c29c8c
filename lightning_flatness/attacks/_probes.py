"""What a model and its gradient do close to clean inputs, where they should agree."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_flatness.attacks._ball import Ball
from lightning_flatness.attacks._class_logits import other_logits
from lightning_flatness.attacks._oracle import Derivative, Oracle
from lightning_flatness.attacks._targeted_losses import targeted_margin
from lightning_flatness.functional._numerics import wide

PROBES = (
    "zero_gradient_rate",
    "gradient_underflow",
    "loss_underflow_rate",
    "probabilities",
    "randomness",
    "gradient_alignment",
    "directional_correlation",
)
_PROBE_RADIUS = 0.1
"""How far from the clean input the gradient is compared, in epsilons."""
_ENLARGEMENT = 2.0**10
_STREAM = 2**21  # far from the random starts of attacks
_SUM_SLACK = 1e-3
_ROUNDINGS = 16
"""Rounding errors of the logits that a difference must exceed to mean something."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A mean in two parts, which add up over batches and processes.

    ``torchmetrics.MeanMetric().update(signal.mean(), signal.count)`` takes one in.

    Args:
        sum: of the values, float64 (float32 on MPS).
        count: of the values.
    """

    sum: Float[Tensor, ""]
    count: Float[Tensor, ""]

    @classmethod
    def of(cls, values: Tensor, where: Bool[Tensor, " batch"] | None = None) -> "Signal":
        """Sum up the finite ones among ``values``, or among those of them that ``where`` names."""
        values = wide(values)
        valid = values.isfinite() if where is None else values.isfinite() & where
        return cls(torch.where(valid, values, 0).sum(), valid.sum().to(values.dtype))

    def mean(self) -> Float[Tensor, ""]:
        """Mean of the values; 0 where there is none."""
        return self.sum / self.count.clamp(min=1)


def probe(oracle: Oracle, ball: Ball, target: Int[Tensor, " batch"], seeds: Int[Tensor, " batch"]) -> dict[str, Signal]:
    """Compare gradients with each other and with differences of logits; five forward and five backward passes.

    Args:
        oracle: the model.
        ball: around the clean inputs, classified as ``target``.
        target: true classes.
        seeds: one per sample.

    Returns:
        Signals by name.
    """
    clean = ball.realise(ball.inputs)
    plain = oracle.differentiate(clean, target, ordinary_cross_entropy)
    enlarged = oracle.differentiate(clean, target, _enlarged_cross_entropy)
    other = other_logits(plain.logits, target).argmax(1)

    def lead(logits: Tensor, target: Tensor) -> Tensor:
        return targeted_margin(logits, target, other)

    here = oracle.differentiate(clean, target, lead)
    small = replace(ball, epsilon=_PROBE_RADIUS * ball.epsilon)
    noisy = small.realise(small.random_start(seeds, _STREAM))
    uphill = small.realise(small.project(small.step(small.inputs, here.gradient.nan_to_num(0, 0, 0), small.epsilon)))
    beside, above = (oracle.differentiate(point, target, lead) for point in (noisy, uphill))
    return {
        "zero_gradient_rate": Signal.of(plain.is_flat()),
        "gradient_underflow": _lost(_flat(plain.gradient), _flat(enlarged.gradient)),
        "loss_underflow_rate": Signal.of(plain.value == 0),
        "probabilities": Signal.of(_are_probabilities(plain)),
        "randomness": Signal.of(_relative_change(plain.logits, here.logits)),
        "gradient_alignment": Signal.of(_cosine(_flat(here.gradient), _flat(beside.gradient))),
        "directional_correlation": _agreement(here, [(beside, noisy - clean), (above, uphill - clean)]),
    }


def ordinary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy as torch computes it, which rounds to 0 where the true class leads far enough."""
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def _enlarged_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return _ENLARGEMENT * ordinary_cross_entropy(logits, target)


def _lost(gradient: Float[Tensor, "batch dim"], enlarged: Float[Tensor, "batch dim"]) -> Signal:
    """Share of the elements of a gradient that are 0, though they are not where all are larger by a power of two."""
    exists = enlarged != 0
    share = (exists & (gradient == 0)).sum(1) / exists.sum(1)
    return Signal.of(share.masked_fill(~enlarged.isfinite().all(1), torch.nan))


def _are_probabilities(output: Derivative) -> Bool[Tensor, " batch"]:
    slack = _SUM_SLACK + _ROUNDINGS * output.rounding
    inside = (output.logits >= -slack.unsqueeze(1)) & (output.logits <= 1 + slack.unsqueeze(1))
    return inside.all(1) & ((output.logits.sum(1) - 1).abs() <= slack)


def _relative_change(before: Float[Tensor, "batch classes"], after: Float[Tensor, "batch classes"]) -> Tensor:
    """Largest change of a logit, in shares of the largest logit; infinite logits mask classes."""
    change, size = ((values.nan_to_num(0, 0, 0)).abs().amax(1) for values in (after - before, before))
    return torch.where(change == 0, 0, change / size)


def _agreement(here: Derivative, steps: list[tuple[Derivative, Tensor]]) -> Signal:
    """Cosine, over the steps, of how the value changes and how the gradients at both ends say that it does."""
    changes = torch.stack([there.value - here.value for there, _ in steps], dim=1)
    means = [_flat(here.gradient + there.gradient) / 2 for there, _ in steps]
    predicted = torch.stack([(mean * _flat(step)).sum(1) for mean, (_, step) in zip(means, steps, strict=True)], dim=1)
    noise = _ROUNDINGS * here.rounding * here.logits.nan_to_num(0, 0, 0).abs().amax(1)
    measurable = torch.maximum(changes.abs(), predicted.abs()).amax(1) > noise
    return Signal.of(_cosine(changes, predicted).nan_to_num(0.0), measurable)


def _cosine(first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """NaN where a vector is 0 or not finite."""
    # Squares of small gradients underflow: bring the largest element to 1 first.
    first, second = (vector / vector.abs().amax(1, keepdim=True) for vector in (first, second))
    return torch.nn.functional.cosine_similarity(first, second, dim=1)


def _flat(values: Tensor) -> Float[Tensor, "batch dim"]:
    return values.flatten(1)
