"""Points of made-up trajectories, and what the metric must make of them, one sample at a time."""

import math
from statistics import fmean
from typing import Any

import torch

from lightning_flatness.functional import TrajectoryPoints

POSITIONS = (0.0, 1.0, 2.0, 4.0)


def trajectory_points(count: int = 40, seed: int = 0) -> TrajectoryPoints:
    """Paths of which some are fooled, some end in the valley, and some never rise."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (len(POSITIONS), count)
    distance = rand(*shape).cumsum(0)
    return TrajectoryPoints(
        log_neuronwise=6 * rand(*shape) - 3,
        log_layerwise=6 * rand(*shape),
        log_maxeig=6 * rand(*shape) - 60,
        loss=(rand(*shape) * 1.2 * rand(count)).cumsum(0),
        confidence=1 - 0.3 * rand(*shape) ** 3,
        margin=2 * rand(*shape) - 1,
        flipped=rand(*shape) < 0.6,
        feature_norm=10 * rand(*shape),
        feature_distance=distance - distance[0],
        input_distance=0.1 * (distance - distance[0]),
    )


def part(points: TrajectoryPoints, rows: slice) -> TrajectoryPoints:
    return TrajectoryPoints(*(value[:, rows] for value in points))


def scalars_by_hand(
    points: TrajectoryPoints, loss_rise: float = math.log(2), confidence: float = 0.9
) -> dict[str, Any]:
    """What ``AttackTrajectory.compute`` must return for finite points."""
    count = points.loss.shape[1]
    kappa = [[math.exp(value) for value in row] for row in points.log_neuronwise.tolist()]
    means = [fmean(row) for row in kappa]
    fooled = [k for k in range(count) if points.flipped[-1, k]]
    valley = [k for k in fooled if kappa[-1][k] < kappa[0][k] and points.confidence[-1, k] > confidence]
    widths = sorted(
        _width(points.loss[:, k].tolist(), points.input_distance[:, k].tolist(), loss_rise) for k in range(count)
    )
    median = widths[(count - 1) // 2]
    return {
        "samples": count,
        "nonfinite": 0,
        "clean_flatness": means[0],
        "peak_flatness": max(means),
        "peak_step": POSITIONS[means.index(max(means))],
        "final_flatness": means[-1],
        "success_rate": len(fooled) / count,
        "valley_rate": len(valley) / len(fooled),
        "basin_censored_rate": sum(math.isinf(width) for width in widths) / count,
        **({} if math.isinf(median) else {"basin_width": median}),
    }


def _width(loss: list[float], distance: list[float], loss_rise: float) -> float:
    for k in range(1, len(loss)):
        if loss[k] - loss[0] >= loss_rise:
            part_of_step = (loss_rise + loss[0] - loss[k - 1]) / (loss[k] - loss[k - 1])
            return distance[k - 1] + part_of_step * (distance[k] - distance[k - 1])
    return math.inf
