"""Heads with samples, and what the metrics must make of them, by the slowest road."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_flatness.functional import feature_hessian_trace, relative_flatness
from lightning_flatness.functional.losses import resolve_loss

Inputs = dict[str, Any]
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


def head_inputs(samples: int = 40, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    """Arguments of ``RelativeFlatness.update`` for 5 classes of which some samples are classified wrongly."""
    generator = torch.Generator().manual_seed(seed)
    features, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((samples, 6), (5, 6), (5,))
    )
    features = features * torch.logspace(-1, 0.5, samples, dtype=torch.float64).unsqueeze(1)
    target = torch.randint(5, (samples,), generator=generator)
    logits = features @ weight.T + bias
    target = torch.where(torch.arange(samples) % 3 > 0, logits.argmax(1), target)
    floats = {"features": features, "weight": weight, "logits": logits, "bias": bias}
    return {name: tensor.to(dtype) for name, tensor in floats.items()} | {"target": target}


def of_samples(inputs: Inputs, rows: Any) -> Inputs:
    """Inputs of some of the samples."""
    per_sample = {"features", "logits", "target"}
    return {name: value[rows] if name in per_sample else value for name, value in inputs.items()}


def without(inputs: Inputs, *names: str) -> Inputs:
    return {name: value for name, value in inputs.items() if name not in names}


def by_hand(inputs: Inputs, variant: str = "neuronwise", loss: Any = "cross_entropy") -> dict[str, float]:
    """What ``RelativeFlatness.compute`` must return, from per-sample values of the functional core and ``fsum``."""
    features, weight, logits, target, bias = (
        inputs.get(name) for name in ("features", "weight", "logits", "target", "bias")
    )

    def flatness(of: str) -> list[float]:
        return relative_flatness(features, weight, logits, target, variant=of, loss=loss, bias=bias).tolist()

    if bias is not None:
        features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        weight, bias = torch.cat([weight, bias.unsqueeze(1)], 1), None
    values = flatness(variant)
    columns = {
        "relative_flatness": values,
        "layerwise": flatness("layerwise"),
        "confidence_factor": feature_hessian_trace(torch.eye(len(weight)).to(weight), logits, target, loss=loss),
        "feature_norm": features.double().norm(dim=1),
        "weight_norm": [float(weight.double().norm())],
    }
    confidence, curvature = columns["confidence_factor"], feature_hessian_trace(weight, logits, target, loss=loss)
    columns["geometry_factor"] = (curvature / confidence)[confidence != 0]
    expected = {name: mean(column) for name, column in columns.items()}
    expected |= {name: quantile(values, probability) for name, probability in QUANTILES.items()}
    if min(values) >= 0:
        expected["geometric_mean"] = math.exp(mean([math.log(value) for value in values if value > 0]))
    if target is not None and target.ndim == 1 and resolve_loss(loss).target_is_class:
        right = (logits.argmax(1) == target).tolist()
        for name, wanted in (("correct", True), ("wrong", False)):
            part = [value for value, answer in zip(values, right, strict=True) if answer is wanted]
            expected |= {name: mean(part)} if part else {}
    return expected | {"nonfinite": 0}


def mean(values: Any) -> float:
    values = values.tolist() if isinstance(values, Tensor) else values
    return math.fsum(values) / len(values)


def quantile(values: list[float], probability: float) -> float:
    return sorted(values)[math.ceil(probability * len(values)) - 1]


def scalars(result: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in result.items()}
