"""Ways through input space that no attack has chosen: straight lines and corruptions, to compare attacks with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lightning_flatness.attacks._ball import Ball
from lightning_flatness.attacks._noise import normal, uniform

MIXING_LEVELS = tuple(level / 10 for level in range(11))
"""Positions on a straight line, the clean input first."""
SEVERITIES = tuple(map(float, range(6)))
"""Of a corruption; 0 is the clean input."""

# Severities 1 to 5 of Hendrycks and Dietterich, ICLR 2019; blur as for images of 32 x 32.
_NOISE_SCALES = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR_SCALES = (0.4, 0.6, 0.7, 0.8, 1.0)
_BLUR_SIDE = 32
_CONTRASTS = (0.4, 0.3, 0.2, 0.1, 0.05)
_BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)
_STREAM = 2**21  # far from the random starts of attacks


@dataclass(frozen=True, eq=False)
class Start:
    """Where paths begin.

    Args:
        ball: around the clean inputs.
        other: another input for each of them.
        seeds: one per sample.
        lower: smallest valid value in the units of the inputs, broadcastable, -inf for none.
        upper: largest valid value, likewise.
    """

    ball: Ball
    other: Float[Tensor, "batch *shape"]
    seeds: Int[Tensor, " batch"]
    lower: Tensor
    upper: Tensor

    @property
    def inputs(self) -> Float[Tensor, "batch *shape"]:
        """Clean inputs, float32 or wider."""
        return self.ball.inputs

    def noise(self) -> Float[Tensor, "batch *shape"]:
        """Uniformly random inputs of the valid range."""
        return self.lower + (self.upper - self.lower) * uniform(self.seeds, _STREAM, self.inputs)

    def normal(self) -> Float[Tensor, "batch *shape"]:
        """Independent standard normal numbers."""
        return normal(self.seeds, _STREAM, self.inputs)


@dataclass(frozen=True)
class Path:
    """A way from the clean input.

    Args:
        positions: of its points, 0 first.
        point: inputs at a position other than 0, before they are cut by the valid range.
        needs_range: has no meaning without a valid range.
        needs_images: takes images only.
    """

    positions: tuple[float, ...]
    point: Callable[[Start, float], Tensor]
    needs_range: bool = False
    needs_images: bool = False

    def check(self, name: str, start: Start) -> None:
        """Raise ``ValueError`` where this path cannot be gone.

        Args:
            name: of the path.
            start: where it begins.

        Raises:
            ValueError: if there is no valid range, or inputs are no images, where it needs them.
        """
        if self.needs_range and not bool((start.lower.isfinite() & start.upper.isfinite()).all()):
            raise ValueError(f"`path` {name!r} needs a valid range, got none; give `lower` and `upper`.")
        if self.needs_images and start.inputs.ndim != 4:
            shape = tuple(start.inputs.shape[1:])
            raise ValueError(f"`path` {name!r} needs samples of shape (channels, height, width), got {shape}.")

    def at(self, start: Start, position: float) -> Float[Tensor, "batch *shape"]:
        """Inputs at one position, in the valid range and the dtype of the clean ones."""
        if position == 0:
            return start.inputs.to(start.ball.dtype)
        moved = self.point(start, position).to(start.inputs)
        return torch.clamp(moved, start.lower.to(moved), start.upper.to(moved)).to(start.ball.dtype)


def _to_noise(start: Start, level: float) -> Tensor:
    return start.inputs.lerp(start.noise().to(start.inputs), level)


def _to_other(start: Start, level: float) -> Tensor:
    return start.inputs.lerp(start.other.to(start.inputs), level)


def _random(start: Start, level: float) -> Tensor:
    ball = start.ball
    return ball.project(ball.step(start.inputs, start.normal(), level * ball.epsilon))


def _gaussian_noise(start: Start, severity: float) -> Tensor:
    return start.inputs + _at(_NOISE_SCALES, severity) * (start.upper - start.lower) * start.normal()


def _blur(start: Start, severity: float) -> Tensor:
    images = start.inputs
    scale = _at(_BLUR_SCALES, severity) * max(images.shape[2:]) / _BLUR_SIDE
    radius = min(ceil(3 * scale), *(side - 1 for side in images.shape[2:]))
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / scale) ** 2).to(images)
    kernel = kernel / kernel.sum()
    planes = pad(images.flatten(0, 1).unsqueeze(1), (radius,) * 4, mode="replicate")
    return conv2d(conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)).view(images.shape)


def _contrast(start: Start, severity: float) -> Tensor:
    inputs = start.inputs
    mean = inputs.mean(tuple(range(2 if inputs.ndim > 2 else 1, inputs.ndim)), keepdim=True)
    return mean + _at(_CONTRASTS, severity) * (inputs - mean)


def _brightness(start: Start, severity: float) -> Tensor:
    return start.inputs + _at(_BRIGHTER, severity) * (start.upper - start.lower)


def _at(values: tuple[float, ...], severity: float) -> float:
    return values[round(severity) - 1]


PATHS: Mapping[str, Path] = MappingProxyType({
    "noise": Path(MIXING_LEVELS, _to_noise, needs_range=True),
    "image": Path(MIXING_LEVELS, _to_other),
    "random": Path(MIXING_LEVELS, _random),
    "gaussian_noise": Path(SEVERITIES, _gaussian_noise, needs_range=True),
    "blur": Path(SEVERITIES, _blur, needs_images=True),
    "contrast": Path(SEVERITIES, _contrast),
    "brightness": Path(SEVERITIES, _brightness, needs_range=True),
})
