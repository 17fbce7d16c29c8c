"""The images in [0, 1] that torchattacks asks for, and the way back to the inputs of the model."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_flatness.attacks._ball import Ball
from lightning_flatness.attacks.threat import ThreatModel

_ROUNDING = 1e-6
"""Rounding error of a pixel in [0, 1]: about 8 units in the last place of float32."""


class UnitBox:
    """Linear map between inputs and contiguous float32 images whose valid range is [0, 1].

    A vector becomes an image of one row, a signal one row per channel, a video its frames below each other.

    Args:
        threat: has a valid range.
        ball: around the inputs to attack.
    """

    def __init__(self, threat: ThreatModel, ball: Ball) -> None:
        lower, upper = threat.value_range(ball.inputs)
        self._ball = ball
        self._norm = threat.norm
        self._width = (upper - lower).to(ball.inputs.dtype)
        self._lower = lower.to(ball.inputs.dtype)
        self._is_identity = bool((lower == 0).all() & (upper == 1).all())

    def images(self, inside: float) -> Float[Tensor, "batch channels height width"]:
        """Clean images, no pixel closer to 0 and 1 than ``inside``."""
        unit = ((self._ball.inputs - self._lower) / self._width).clamp(inside, 1 - inside)
        return unit.float().reshape(_image_shape(unit)).contiguous()

    def inputs(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch *shape"]:
        """Turn images into what the model is given; an image may have another size where the inputs are images."""
        shape = self._ball.inputs.shape
        data = images if len(shape) == 4 else images.reshape(len(images), *shape[1:])
        if not self._is_identity:
            data = data.to(self._width) * self._width + self._lower
        return data.to(self._ball.dtype)

    def admitted(
        self,
        images: Float[Tensor, "batch channels height width"],
        clean: Float[Tensor, "batch channels height width"],
    ) -> tuple[Float[Tensor, "batch *shape"], Bool[Tensor, " batch"]]:
        """Perturbed inputs, and whether each lies in ball and range but for the rounding of float32.

        What an attack left as it was is left exactly as it was.
        """
        ball, images = self._ball, images.detach().to(clean)
        shift = (images - clean).view(ball.inputs.shape).to(self._width) * self._width
        moved, slack = (shift * ball.scale).abs(), _ROUNDING * self._width * ball.scale
        if self._norm == "l2":
            slack = slack.amax() * clean[0].numel() ** 0.5
            near = torch.linalg.vector_norm(moved.flatten(1), dim=1) <= ball.epsilon.amax() + slack
        else:
            near = (moved <= ball.epsilon + slack).flatten(1).all(1)
        inside = ((images >= -_ROUNDING) & (images <= 1 + _ROUNDING)).flatten(1).all(1)
        # Rounded as the attack has seen it; neither comparison holds for NaN.
        return (ball.inputs + shift).to(ball.dtype).to(shift), near & inside


def _image_shape(inputs: Tensor) -> tuple[int, ...]:
    if inputs.ndim == 2:
        return len(inputs), 1, 1, inputs.shape[1]
    if inputs.ndim == 3:
        return len(inputs), inputs.shape[1], 1, inputs.shape[2]
    return len(inputs), inputs.shape[1], inputs[0, 0, ..., 0].numel(), inputs.shape[-1]
