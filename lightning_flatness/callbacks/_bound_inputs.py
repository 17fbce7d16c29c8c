"""What bounds need of a step, and what is said where it has something else."""

from torch import Tensor

from lightning_flatness.attacks import ThreatModel
from lightning_flatness.callbacks._head_monitor import Observation
from lightning_flatness.callbacks._lipschitz import FeaturesFunction
from lightning_flatness.functional._numerics import wide

TRIED_SAMPLES = 2
"""Samples that the module is run on once more to see that it does what its validation step does, and samples of the
sanity check whose constants are estimated."""
_SAME_FEATURES = 0.1
"""Largest share of its length by which a feature vector may differ then: low precision, and a little noise."""


def checked_target(observation: Observation, threat: ThreatModel) -> Tensor:
    """Class indices of a batch, one for each input.

    Args:
        observation: of the batch.
        threat: knows which inputs are valid.

    Raises:
        ValueError: if inputs, targets or logits are not those of one classified input each.
    """
    head, inputs, target = observation.head, observation.step.inputs, observation.target
    if not isinstance(inputs, Tensor) or target is None or target.ndim != 1 or target.is_floating_point():
        raise ValueError(
            f"Bounds need a tensor of inputs and one of class indices, got {_described(inputs)} and "
            f"{_described(target)}; pass `inputs_and_targets=` a function that picks them, with `argmax(1)` of "
            "one-hot targets. A regression has no classes, and no bounds."
        )
    if head.logits.ndim != 2 or len(head.logits) != observation.samples:
        raise ValueError(
            f"Bounds need one row of logits for each of the {observation.samples} samples, "
            f"got shape {tuple(head.logits.shape)}: a radius is one of an input."
        )
    threat.check_inputs(inputs)
    return target


def check_features(features_fn: FeaturesFunction, inputs: Tensor, features: Tensor) -> None:
    """See on a few samples that the function that is bounded is the one that was evaluated.

    Args:
        features_fn: maps inputs to features.
        inputs: of the step.
        features: of the same step.

    Raises:
        ValueError: if the function gives others.
    """
    expected = wide(features[:TRIED_SAMPLES])
    found = wide(features_fn(inputs[:TRIED_SAMPLES]))
    if found.shape != expected.shape or bool((found - expected).norm() > _SAME_FEATURES * expected.norm()):
        raise ValueError(
            "The module's `forward` gives other features than its validation step does for the same inputs; "
            "pass `logits_fn=lambda module, x: ...`, which does what the step does."
        )


def _described(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
