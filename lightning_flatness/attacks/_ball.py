"""What an attack may do to given inputs: the ball around each of them, cut by the valid range.

All arithmetic is in the units of the inputs as the model sees them; ``scale`` leads from there to the data's own units.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lightning_flatness.attacks._noise import normal, uniform

_L2_MARGIN = 1e-6
"""Relative margin that keeps the norm of a rounded perturbation below epsilon."""


@dataclass(frozen=True, eq=False)
class Ball(ABC):
    """The perturbed inputs that a threat model allows.

    Args:
        inputs: clean inputs, float32 or wider.
        low: smallest value allowed for each element.
        high: largest value allowed for each element.
        scale: data units per unit of the inputs, broadcastable.
        epsilon: radius in data units, broadcastable.
        dtype: of what the model is given.
    """

    inputs: Float[Tensor, "batch *shape"]
    low: Float[Tensor, "batch *shape"]
    high: Float[Tensor, "batch *shape"]
    scale: Tensor
    epsilon: Tensor
    dtype: torch.dtype

    @abstractmethod
    def project(self, x_adv: Tensor) -> Tensor:
        """Return a point of the ball, inside the valid range, close to each ``x_adv``."""

    @abstractmethod
    def step(self, x_adv: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """Go by ``size`` (data units) in the steepest direction of the norm; nowhere where the gradient is 0."""

    @abstractmethod
    def random_start(self, seeds: Int[Tensor, " batch"], stream: int) -> Tensor:
        """Draw one point uniformly from each ball, moved into the valid range."""

    @abstractmethod
    def realise(self, x_adv: Tensor) -> Tensor:
        """Round to what the model is given without leaving the ball."""

    def take(self, rows: Tensor) -> "Ball":
        """Keep some of the samples."""
        return replace(self, inputs=self.inputs[rows], low=self.low[rows], high=self.high[rows])

    def per_sample(self, values: Tensor) -> Tensor:
        """View one value per sample so that it broadcasts against the inputs."""
        return values.view(-1, *[1] * (self.inputs.ndim - 1))

    def _like_inputs(self, x_adv: Tensor) -> Tensor:
        return torch.empty_like(self.inputs).copy_(x_adv)


class LinfBall(Ball):
    """Each element moves by at most epsilon: ``low`` and ``high`` say it all."""

    @override
    def project(self, x_adv: Tensor) -> Tensor:
        return torch.clamp(x_adv, self.low, self.high)

    @override
    def step(self, x_adv: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        return x_adv + size / self.scale * gradient.sign()

    @override
    def random_start(self, seeds: Int[Tensor, " batch"], stream: int) -> Tensor:
        shift = 2 * uniform(seeds, stream, self.inputs) - 1
        return self.project(self._like_inputs(self.inputs + self.epsilon / self.scale * shift))

    @override
    def realise(self, x_adv: Tensor) -> Tensor:
        # Rounding is monotone, and both limits are numbers of this dtype.
        return x_adv.to(self.dtype)


class L2Ball(Ball):
    """The Euclidean norm of a sample's perturbation, over all its dimensions, is at most epsilon."""

    @override
    def project(self, x_adv: Tensor) -> Tensor:
        shift = x_adv - self.inputs
        factor = ((1 - _L2_MARGIN) * self.epsilon / _norm(self.scale * shift)).nan_to_num(1.0).clamp(max=1.0)
        # The inputs lie inside the range, so that clamping shortens the perturbation.
        return torch.clamp(self.inputs + factor * shift, self.low, self.high)

    @override
    def step(self, x_adv: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        direction = gradient / self.scale
        # Squares of small gradients underflow: bring the largest element to 1 first.
        direction = direction / _nonzero(direction.abs().amax(_sample_dims(direction), keepdim=True))
        return x_adv + size / self.scale * direction / _nonzero(_norm(direction))

    @override
    def random_start(self, seeds: Int[Tensor, " batch"], stream: int) -> Tensor:
        direction = normal(seeds, stream, self.inputs)
        dim = direction.numel() // max(1, len(direction))
        radius = self.per_sample(uniform(seeds, ~stream, seeds.unsqueeze(1)).pow(1 / max(1, dim)))
        shift = self.epsilon / self.scale * radius * direction / _norm(direction)
        return self.project(self._like_inputs(self.inputs + shift))

    @override
    def realise(self, x_adv: Tensor) -> Tensor:
        return round_towards(x_adv, self.inputs, self.dtype)


def round_towards(values: Tensor, anchor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to ``dtype`` such that no element gets further from ``anchor``, whose elements are numbers of ``dtype``."""
    rounded = values.to(dtype)
    if rounded.dtype == values.dtype:
        return rounded
    outside = (rounded.to(values.dtype) - anchor).abs() > (values - anchor).abs()
    return torch.where(outside, _neighbour(rounded, anchor.to(dtype)), rounded)


def _neighbour(values: Tensor, anchor: Tensor) -> Tensor:
    """Next number of the dtype on the way to ``anchor``."""
    if values.dtype.itemsize > 2:
        return torch.nextafter(values, anchor)
    # Not every device has nextafter for 16 bits. One more in the bits is one step away from zero, for either sign.
    grows = (anchor > values) == (values > 0)
    stepped = (values.view(torch.int16) + torch.where(grows, 1, -1).to(torch.int16)).view(values.dtype)
    return torch.where(values == 0, anchor, stepped)


def _sample_dims(values: Tensor) -> tuple[int, ...]:
    return tuple(range(1, values.ndim))


def _norm(shift: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(shift, dim=_sample_dims(shift), keepdim=True)
    return norm


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1)
