"""The experiments of the papers, each a function of a trained network and a few inputs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from examples.paper_networks import head_of
from lightning_flatness.attacks import ThreatModel, attack_scaled_head, pgd, trajectory
from lightning_flatness.functional import relative_flatness, scale_head
from lightning_flatness.metrics import AttackTrajectory, HeadScaling, LossBoundCheck, detection_scores

Row = dict[str, float]
SCALES = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}


class Subject(NamedTuple):
    """A trained network in evaluation mode, and what it is attacked on."""

    network: nn.Module
    inputs: Tensor
    target: Tensor


class Seen(NamedTuple):
    """What a head has got and made of inputs."""

    features: Tensor
    logits: Tensor


def along_the_attack(subject: Subject, threat: ThreatModel, steps: int) -> tuple[list[Row], Row]:
    """Follow samples along PGD.

    Args:
        subject: attacked.
        threat: the ball and the valid range.
        steps: of the attack.

    Returns:
        A row per step, and what the whole path amounts to.
    """
    network, inputs, target = subject
    found = trajectory(network, head_of(network), inputs, target, threat, steps=steps)
    metric = AttackTrajectory(found.positions)
    metric.update(found.points)
    totals = {name: float(value) for name, value in metric.compute().items()}
    totals["largest_distance"] = max(metric.curves["input_distance_mean"])
    columns = {"step": "position", "relative_flatness": "neuronwise_mean", "loss": "loss_mean"}
    columns |= {"confidence": "confidence_mean", "flip_rate": "flipped"}
    curves = [metric.curves[source] for source in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*curves, strict=True)], totals


def scaled_heads(subject: Subject, threat: ThreatModel, steps: int) -> list[Row]:
    """Multiply the head: flatness, calibration, and what attacks say, a row per scale.

    Args:
        subject: attacked.
        threat: the ball and the valid range.
        steps: of the attacks.
    """
    network, inputs, target = subject
    seen, metric = look(network, inputs), HeadScaling(SCALES)
    metric.update(seen.features, head_of(network).weight, seen.logits, target)
    values = metric.compute()
    attacked = attack_scaled_head(network, inputs, target, threat, scales=SCALES, steps=steps).rates()
    columns = {name: values[name] for name in values if values[name].ndim}
    columns |= {name: total / count for name, (total, count) in attacked.items()}
    return [{name: float(column[place]) for name, column in columns.items()} for place in range(len(SCALES))]


def loss_increases(subject: Subject, threat: ThreatModel, steps: int) -> list[Row]:
    """Quantiles over the samples of how much PGD on the cross-entropy raises the loss, a row per scale of the head.

    Args:
        subject: attacked.
        threat: the ball and the valid range.
        steps: of the attack.
    """
    network, inputs, target = subject
    weight, rows = head_of(network).weight, []
    for scale in SCALES:
        x_adv = pgd(
            lambda x, s=scale: s * network(x), inputs, target, threat, steps=steps, stop_when_fooled=False
        ).x_adv
        before, after = (
            scale_head(seen.features, weight, seen.logits, target, [scale]).loss[0]
            for seen in (look(network, inputs), look(network, x_adv))
        )
        rows.append({"scale": scale} | {name: float((after - before).quantile(q)) for name, q in _QUANTILES.items()})
    return rows


def detection(subject: Subject, threats: Sequence[ThreatModel], steps: int) -> list[Row]:
    """How well flatness and confidence tell adversarial inputs from the clean ones, a row per threat model.

    Args:
        subject: attacked.
        threats: balls of growing radius.
        steps: of the attack.
    """
    network, inputs, target = subject
    rows = []
    for threat in threats:
        result = pgd(network, inputs, target, threat, steps=steps, stop_when_fooled=False)
        clean = _signs(network, inputs[result.initially_correct])
        adversarial = _signs(network, result.x_adv[result.success])
        if result.success.any():
            scores = detection_scores(clean[0], adversarial[0], clean[1], adversarial[1])
            rows.append({"epsilon": float(torch.as_tensor(threat.epsilon).max()), **scores})
    return rows


def bound_against_attack(subject: Subject, threat: ThreatModel, steps: int) -> Mapping[str, float]:
    """How often the loss grew by more than bounds in feature space allow.

    Args:
        subject: attacked.
        threat: the ball and the valid range.
        steps: of the attack.
    """
    network, inputs, target = subject
    x_adv = pgd(network, inputs, target, threat, steps=steps, stop_when_fooled=False).x_adv
    clean, adversarial = look(network, inputs), look(network, x_adv)
    found: dict[str, float] = {}
    for name, constant in (("reported", None), ("flatness_only", 0.0)):
        metric = LossBoundCheck(cubic_constant=constant)
        metric.update(clean.logits, target, head_of(network).weight, clean.features, adversarial.features)
        values = {key: float(value) for key, value in metric.compute().items()}
        found[f"taylor_violation_rate_{name}"] = values.pop("taylor_violation_rate")
        found |= values
    return found


def look(network: nn.Module, inputs: Tensor) -> Seen:
    """Features and logits of inputs, by one forward pass.

    Args:
        network: has a linear head.
        inputs: to look at.
    """
    features: list[Any] = []
    head = head_of(network)
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, given: features.append(given[0])):
        logits = network(inputs)
    return Seen(features[-1], logits)


def _signs(network: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Relative flatness and confidence of each input."""
    seen = look(network, inputs)
    flatness = relative_flatness(seen.features, head_of(network).weight.detach(), seen.logits)
    return flatness, seen.logits.double().softmax(1).amax(1)
