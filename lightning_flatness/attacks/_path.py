"""The way an attack takes through input space, in bounded memory."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_PATH_POINTS = 66
"""Most points of a recorded path: the clean input and 65 iterates, evenly spaced if there are more."""

PointObserver = Callable[[Tensor, Tensor, int], object]
"""Is told, right after each call of the model: rows of the batch, their perturbed inputs, gradient steps so far."""


class PathRecorder:
    """Iterates of one run.

    Args:
        inputs: clean inputs, the first point.
        num_steps: gradient steps that the run may take.
    """

    def __init__(self, inputs: Float[Tensor, "batch *shape"], num_steps: int) -> None:
        iterates = min(num_steps + 1, MAX_PATH_POINTS - 1)
        self.steps = (-1, *torch.linspace(0, num_steps, iterates).round().int().tolist())
        self._points = inputs.new_empty(len(self.steps), *inputs.shape)
        self._points[0] = inputs
        self._now = inputs.clone()
        self._recorded = 1

    def record(self, rows: Int[Tensor, " batch"], x: Float[Tensor, "batch *shape"], step: int) -> None:
        """Note where some of the samples are after ``step`` steps; called with growing steps."""
        if step > self.steps[-1]:
            return
        self._catch_up(step)
        self._now[rows] = x

    def points(self) -> Float[Tensor, "points batch *shape"]:
        """All points; samples that stopped stay where they were."""
        self._catch_up(self.steps[-1] + 1)
        return self._points

    def _catch_up(self, step: int) -> None:
        """Store the present as the points before ``step``."""
        while self._recorded < len(self.steps) and self.steps[self._recorded] < step:
            self._points[self._recorded] = self._now
            self._recorded += 1
