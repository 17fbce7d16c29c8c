"""What a head does, whatever it is made of: a weight and a bias, applied to rows of features."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_flatness.functional._numerics import TILE_ELEMENTS, at_least_float32, chunks, full_precision, wide

_CHECKED_ROWS = 8
"""Rows of a call that are computed once more: what is wrong is wrong in all of them."""
_TOLERANCE = 3e-3
"""Largest relative error of logits that are computed once more in full precision: TF32."""
_ROUNDINGS = 8
"""Largest number of roundings of the logits' own dtype in the same."""


class HeadCall(NamedTuple):
    """One call of the head; ``features`` and ``logits`` have the same leading dimensions."""

    features: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor | None


class RawCall(NamedTuple):
    """What entered and left a layer, and the weight it had then where it can be read."""

    inputs: Tensor
    outputs: Tensor
    weight: Tensor | None
    bias: Tensor | None


def recorded_call(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> RawCall:
    """A call of a layer, from inside a hook of its forward.

    Args:
        layer: that was called.
        inputs: of the call.
        outputs: of the call.
    """
    # Subclasses may do more than their weight says.
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return RawCall(inputs.detach(), outputs.detach(), None, None)
    weight, bias = _parameters(layer)
    return RawCall(inputs.detach(), outputs.detach(), weight.detach(), None if bias is None else bias.detach())


def head_call(layer: nn.Module, call: RawCall, name: str) -> HeadCall:
    """Weight, bias and rows of a call; runs the layer on unit vectors where its weight cannot be read.

    Args:
        layer: that was called.
        call: the call.
        name: of the layer, for messages.

    Raises:
        ValueError: if the outputs are not an affine map of the inputs, the same at every position.
    """
    features, logits = head_rows(layer, call.inputs, call.outputs, name)
    weight, bias = call.weight, call.bias
    if weight is None:
        with torch.inference_mode(mode=False), torch.no_grad(), full_precision(features.device):
            weight, bias = _read_off(layer, call.inputs, features.shape[-1], logits.shape[-1])
    _check(HeadCall(features, logits, weight, bias), layer, name)
    return HeadCall(features, logits, weight, bias)


def head_rows(layer: nn.Module, inputs: Tensor, outputs: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Features and logits with the channels last; positions of a convolution are rows, unless there is only one.

    Args:
        layer: that was called.
        inputs: of the call.
        outputs: of the call.
        name: of the layer, for messages.

    Raises:
        ValueError: if inputs and outputs have different positions.
    """
    if inputs.ndim > 2 and inputs.shape[2:].numel() == 1 and outputs.shape[2:].numel() == 1:
        return inputs.flatten(1), outputs.flatten(1)
    if _is_convolution(layer):
        inputs, outputs = inputs.movedim(1, -1), outputs.movedim(1, -1)
    if inputs.shape[:-1] != outputs.shape[:-1]:
        raise ValueError(
            f"`head` {name!r} ({type(layer).__name__}) makes {tuple(outputs.shape)} of {tuple(inputs.shape)}, but must "
            "map the features of each position to its logits; pass `head=` the linear layer in it."
        )
    return inputs, outputs


def _is_convolution(layer: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in layer.modules())


def _parameters(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias; a parametrisation in training mode would change its state by being read."""
    parts = list(layer.modules()) if parametrize.is_parametrized(layer) else []
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    weight, bias = layer.weight, layer.bias
    for part in training:
        part.training = True
    return weight, bias


def _read_off(layer: nn.Module, inputs: Tensor, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """``W`` and ``b`` of ``x ↦ W x + b``, from the layer's outputs for unit vectors and for 0."""
    dtype = next((one.dtype for one in layer.parameters() if one.is_floating_point()), inputs.dtype)
    positions = (1,) * (inputs.ndim - 2)
    is_first = _is_convolution(layer) or inputs.shape[2:].numel() == 1
    shape = (dim, *positions) if is_first else (*positions, dim)

    def outputs(rows: Tensor) -> Tensor:
        return at_least_float32(layer(rows.to(dtype).reshape(len(rows), *shape)).reshape(len(rows), classes))

    unit = torch.eye(dim, device=inputs.device)
    bias = outputs(torch.zeros_like(unit[:1]))
    columns = [outputs(unit[rows]) - bias for rows in chunks(dim, TILE_ELEMENTS // max(dim, classes))]
    return torch.cat(columns).T.contiguous(), bias[0]


def _check(call: HeadCall, layer: nn.Module, name: str) -> None:
    """See that weight and features make the logits: they may have been changed in place, or be no affine map."""
    features, logits = (part.reshape(-1, part.shape[-1])[:_CHECKED_ROWS] for part in (call.features, call.logits))
    expected = wide(features) @ wide(call.weight).T
    if call.bias is not None:
        expected = expected + wide(call.bias)
    tolerance = _TOLERANCE + _ROUNDINGS * torch.finfo(logits.dtype).eps
    # NaN is no error here: what is not finite is counted elsewhere.
    if not bool((expected - wide(logits)).norm() > tolerance * torch.maximum(expected.norm(), wide(logits).norm())):
        return
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        raise ValueError(
            f"The inputs or outputs of the head {name!r} were changed in place behind it; "
            "write the change as a new tensor, e.g. `logits = logits / 2` instead of `logits /= 2`."
        )
    raise ValueError(
        f"`head` must be an affine map of its input (W x + b), which {name!r} ({type(layer).__name__}) is not; "
        "pass `head=` the linear layer in it that makes the logits."
    )
