"""Models that hide their gradients, made of ones that do not, and honest ones of many kinds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.attacks import architectures
from tests.attacks.models import cnn, scaled_head, trained


class Wrapped(nn.Module):
    """A model with something before or after it."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._forward = forward
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(inputs)


class _RandomBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        del ctx
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return torch.randn_like(gradient) * gradient.norm()


def _half_precision(inputs: Tensor) -> Tensor:
    """The same inputs, but gradients below 2**-10 are no numbers of float16 on their way back."""
    return ((inputs * 2**15).half() * 2**-15).float()


PLANTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "head x30": partial(scaled_head, factor=30),
    "head x100": partial(scaled_head, factor=100),
    "head x1000": partial(scaled_head, factor=1000),
    "rounded inputs": lambda model: Wrapped(lambda inputs: model((8 * inputs).round() / 8)),
    "random backward": lambda model: Wrapped(lambda inputs: model(_RandomBackward.apply(inputs))),
    "softmax outputs": lambda model: Wrapped(lambda inputs: model(inputs).softmax(1)),
    "noise": lambda model: Wrapped(lambda inputs: model(inputs + 0.1 * torch.randn_like(inputs))),
    "float16 underflow": lambda model: Wrapped(lambda inputs: model(_half_precision(inputs)) / 100),
}

HONEST: dict[str, Callable[[], nn.Module]] = {
    "cnn": partial(trained, cnn, 5),
    "cnn, seed 1": partial(trained, cnn, 5, seed=1),
    "cnn, smooth labels": partial(trained, cnn, 5, label_smoothing=0.1),
    "cnn, 100 epochs": partial(trained, cnn, 100),
    "mlp": partial(trained, architectures.mlp, 10),
    "mlp, 1000 epochs": partial(trained, architectures.mlp, 1000),
    "batch norm, dropout": partial(trained, architectures.regularised_cnn, 8),
    "resnet": partial(trained, architectures.resnet, 8),
    "vision transformer": partial(trained, architectures.vision_transformer, 10),
    "cnn, linf 0.2": partial(trained, cnn, 5, 0.2),
    "cnn, linf 0.3": partial(trained, cnn, 12, 0.3),
    "cnn, l2 1.0": partial(trained, cnn, 6, 1.0, "l2"),
    "mlp, linf 0.1": partial(trained, architectures.mlp, 10, 0.1),
    "batch norm, linf 0.2": partial(trained, architectures.regularised_cnn, 8, 0.2),
    "transformer, linf 0.1": partial(trained, architectures.vision_transformer, 6, 0.1),
}

EARLY: dict[str, Callable[[], nn.Module]] = {
    f"{build.__name__}, {epochs} epochs": partial(trained, build, epochs)
    for epochs in (0, 1)
    for build in (
        cnn,
        architectures.mlp,
        architectures.regularised_cnn,
        architectures.resnet,
        architectures.vision_transformer,
    )
} | {
    "cnn, 1 epoch of linf 0.2": partial(trained, cnn, 1, 0.2),
    "cnn, 2 epochs of linf 0.3": partial(trained, cnn, 2, 0.3),
}
