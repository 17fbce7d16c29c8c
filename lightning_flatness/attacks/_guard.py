"""What a foreign attack is given to attack, and what is put back after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from lightning_flatness.attacks._oracle import Oracle, balanced
from lightning_flatness.attacks._unit_box import UnitBox


class GuardedModel(nn.Module):
    """The attacked model as torchattacks wants it: a module from images in [0, 1] to float32 logits.

    Gradients end at the images, so that no ``backward`` of an attack reaches the parameters of the model, not even
    of one that only a function knows.

    Args:
        oracle: counts the calls.
        box: maps images to inputs.
        device: of the inputs.

    Attributes:
        raise_logits: shift the logits of each sample until none is negative.
    """

    def __init__(self, oracle: Oracle, box: UnitBox, device: torch.device) -> None:
        super().__init__()
        # Attacks ask the first parameter for the device; a function has none, and a model may be spread.
        self._place = nn.Parameter(torch.empty(0, device=device))
        self._oracle, self._box, self.raise_logits = oracle, box, False
        self.module = oracle.logits_fn if isinstance(oracle.logits_fn, nn.Module) else None
        self.training = False

    @override
    def train(self, mode: bool = True) -> "GuardedModel":
        """Ignore ``eval()``, since the caller has chosen the modes; an attack that was told to train may."""
        return super().train() if mode else self

    @override
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        if torch.is_grad_enabled() and images.requires_grad:
            logits: Tensor = _InputsOnly.apply(images, self)
        else:
            with torch.no_grad():
                logits = _own_float32(self.output(images))
        if not self.raise_logits:
            return logits
        masked = logits == -torch.inf
        lowest = logits.detach().masked_fill(masked, torch.inf).amin(1, keepdim=True)
        return (logits - lowest).masked_fill(masked, 0)

    def output(self, images: Tensor) -> Tensor:
        """What the model says of images."""
        return self._oracle.output(self._box.inputs(images))

    def gradient(self, output: Tensor, images: Tensor, slope: Tensor) -> Tensor:
        """Gradient in the images for one in the output."""
        if output.dtype != torch.float16:
            return self._oracle.pull_back(images, output, slope, keep_graph=True)
        slope, power = balanced(slope, output.dtype)
        gradient = self._oracle.pull_back(images, output, slope, keep_graph=True)
        return torch.ldexp(gradient, power.view(-1, *[1] * (gradient.ndim - 1)))


class _InputsOnly(torch.autograd.Function):
    """A graph of its own between images and logits, of which gradients are taken in the images alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: GuardedModel) -> Tensor:
        with torch.enable_grad():
            point = images.detach().requires_grad_()
            output = model.output(point)
        ctx.model = model
        # Saved tensors, and the graph behind them, are freed with the attack's own graph.
        ctx.save_for_backward(point, output)
        return _own_float32(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        point, output = ctx.saved_tensors
        return ctx.model.gradient(output, point, slopes[0]), None


def _own_float32(output: Tensor) -> Tensor:
    """Copy, since attacks write into logits."""
    return output.detach().to(torch.float32, copy=True)


@contextmanager
def borrowed(attack: Any, model: GuardedModel, device: torch.device) -> Iterator[None]:
    """Point an attack, and those it is made of, to another model; put its whole state back."""
    members = family(attack)
    states = [dict(vars(member)) for member in members]
    try:
        attack.set_model(model)
        attack.set_device(device)
        for member in members:
            vars(member).update(_normalization_applied=None)  # the box sees to that
        yield
    finally:
        for member, state in zip(members, states, strict=True):
            vars(member).clear()
            vars(member).update(state)


def family(attack: Any) -> list[Any]:
    """List an attack and all that it is made of."""
    members = {id(attack): attack}
    for part in vars(attack)["_attacks"].values():
        members |= {id(member): member for member in family(part)}
    return list(members.values())
