"""What a classifier says at the points of a path through its inputs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TrajectoryPoints(NamedTuple):
    """Quantities of each sample at each point of its path; float64 (float32 on MPS).

    Relative flatness is given by its natural logarithm, which does not underflow: -inf for 0, NaN below 0 (which only
    losses other than the cross-entropy have). Distances are to the first point, the clean input.

    Args:
        log_neuronwise: ``log ‖φ‖² tr(Wᵀ H_z W)``.
        log_layerwise: ``log ‖W‖_F² ‖φ‖² tr H_z``.
        log_maxeig: ``log ‖W‖_F² ‖φ‖² λ_max(H_z)``.
        loss: cross-entropy of the true class, in nats.
        confidence: ``max_k p_k``.
        margin: ``max_{k≠y} z_k − z_y``: positive where another class wins.
        flipped: the prediction is not the true class.
        feature_norm: ``‖φ‖``.
        feature_distance: ``‖φ(x') − φ(x)‖``.
        input_distance: ``‖x' − x‖``, in data units.
    """

    log_neuronwise: Float[Tensor, "points batch"]
    log_layerwise: Float[Tensor, "points batch"]
    log_maxeig: Float[Tensor, "points batch"]
    loss: Float[Tensor, "points batch"]
    confidence: Float[Tensor, "points batch"]
    margin: Float[Tensor, "points batch"]
    flipped: Bool[Tensor, "points batch"]
    feature_norm: Float[Tensor, "points batch"]
    feature_distance: Float[Tensor, "points batch"]
    input_distance: Float[Tensor, "points batch"]

    @staticmethod
    def cat(parts: "Sequence[TrajectoryPoints]") -> "TrajectoryPoints":
        """Concatenate consecutive parts of one path."""
        return TrajectoryPoints(*map(torch.cat, zip(*parts, strict=True)))

    @staticmethod
    def empty(points: int, like: Tensor) -> "TrajectoryPoints":
        """Points of no sample, on the device of ``like``."""
        none = like.new_empty(points, 0, dtype=torch.float32 if like.device.type == "mps" else torch.float64)
        return TrajectoryPoints(**{
            name: none.bool() if name == "flipped" else none for name in TrajectoryPoints._fields
        })
