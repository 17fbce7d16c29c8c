"""Every public metric with its settings, and batches for it of 40 samples in all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import Metric

from lightning_flatness.metrics import LocalRobustnessBound, LossBoundCheck
from tests.metrics import test_confidence_flatness as confidence
from tests.metrics import test_local_robustness as bounds
from tests.metrics import trajectories
from tests.metrics.outcomes import ARGUMENTS, ATTACKS, EPSILONS, NUM_CLASSES, arguments, outcomes
from tests.metrics.problems import head_inputs, of_samples, without
from tests.metrics.ranks import METRICS

Inputs = dict[str, Any]


def _attacked(name: str) -> Callable[[slice], Inputs]:
    return lambda rows: arguments(outcomes()[rows], *ARGUMENTS[name])


def _at_the_head(*needless: str) -> Callable[[slice], Inputs]:
    return lambda rows: without(of_samples(head_inputs(), rows), *needless)


class Case(NamedTuple):
    """A metric's settings, and the arguments of its ``update`` for some of the samples."""

    name: str
    settings: Inputs
    inputs_on_cpu: Callable[[slice], Inputs]
    device: torch.device = torch.device("cpu")

    def inputs(self, rows: slice) -> Inputs:
        return move_data_to_device(self.inputs_on_cpu(rows), self.device)

    def new(self, **more: Any) -> Metric:
        return METRICS[self.name](**self.settings, **more).to(self.device)

    def updated(self, *parts: slice, metric: Metric | None = None) -> Metric:
        """A metric, by default a new one, after batches, by default one with all samples."""
        metric = self.new() if metric is None else metric
        for rows in parts or (slice(None),):
            metric.update(**self.inputs(rows))
        return metric


CASES = [
    Case("AttackSuccessRate", {"num_classes": NUM_CLASSES}, _attacked("AttackSuccessRate")),
    Case(
        "AttackTrajectory",
        {"positions": list(trajectories.POSITIONS)},
        lambda rows: {"points": trajectories.part(trajectories.trajectory_points(), rows)},
    ),
    Case("ConfidenceFlatness", {}, lambda rows: confidence.part(confidence.samples(40), rows)),
    Case("HeadScaling", {"scales": [0.5, 1.0, 4.0]}, _at_the_head("bias")),
    Case("HeadTopEigenvalue", {}, _at_the_head("weight", "bias")),
    Case(
        "LocalRobustnessBound",
        {"radii": bounds.RADII, "epsilon": bounds.EPSILON},
        lambda rows: bounds.inputs_of(LocalRobustnessBound(bounds.RADII, bounds.EPSILON), rows),
    ),
    Case("LossBoundCheck", {}, lambda rows: bounds.inputs_of(LossBoundCheck(), rows)),
    Case("RelativeFlatness", {"num_classes": 5}, _at_the_head()),
    Case("RobustAccuracy", {"attacks": ATTACKS}, _attacked("RobustAccuracy")),
    Case("RobustAccuracyCurve", {"epsilons": EPSILONS}, _attacked("RobustAccuracyCurve")),
]


def named(result: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """A metric's result by the names of its entries; one that is no dictionary has no name."""
    return {"": result} if isinstance(result, Tensor) else result


def floats(inputs: Inputs) -> list[Tensor]:
    """Real tensors of one batch, wherever they are."""
    tensors = [tensor for value in inputs.values() for tensor in (value if isinstance(value, tuple) else [value])]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point()]


def states(metric: Metric) -> list[Tensor]:
    """All tensors of a metric's states."""
    values = metric.metric_state.values()
    return [tensor for value in values for tensor in (value if isinstance(value, list) else [value])]


def computed_attributes(metric: Metric) -> dict[str, Any]:
    """What ``compute`` leaves beside its result."""
    return {name: value for name, value in vars(metric).items() if name in {"curves", "histograms", "per_class"}}
