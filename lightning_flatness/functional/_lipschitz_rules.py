"""Lipschitz constants of arithmetic, and of what only moves, leaves out, repeats or adds up numbers."""

from collections.abc import Iterable, Sequence
from inspect import getattr_static
from math import hypot, sqrt
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional._lipschitz_factors import (
    Factor,
    Number,
    always,
    expansion,
    largest,
    repetition,
    wide_weight,
)
from lightning_flatness.functional._lipschitz_tensor import Bound, BoundedTensor, NoRuleError, Rule, plain


def _getters(*names: str) -> list[Any]:
    """What torch calls when an attribute of a tensor is read."""
    return [getattr_static(Tensor, name).__get__ for name in names]


METADATA: list[Any] = [
    *_getters("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_nested", "is_sparse"),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, torch.numel, Tensor.stride, Tensor.__len__),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.get_device),
]
"""Functions whose result does not depend on the numbers of a tensor."""


def _getitem(_: Tensor, index: Any) -> float:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or isinstance(part, int | slice | EllipsisType) for part in parts):
        raise NoRuleError("an index that is no slice can repeat numbers")
    return 1.0


def _view(_: Tensor, *shape: Any) -> float:
    if any(isinstance(part, torch.dtype) for part in shape):
        raise NoRuleError("view as another type reads other numbers")
    return 1.0


def _expand(x: Tensor, *sizes: Any) -> float:
    return repetition(x, x.expand(*sizes))


def _repeat(x: Tensor, *sizes: Any) -> float:
    return repetition(x, x.repeat(*sizes))


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> float:
    """Every number is one of ``x`` or a constant: the root of how often the most frequent one is repeated."""
    if mode == "constant":
        return 1.0
    places = torch.arange(x[:1].numel(), dtype=torch.float64).view(x[:1].shape)
    return sqrt(int(F.pad(places, tuple(pad), mode).long().flatten().bincount().max()))


def _summed(x: Tensor, *args: Any, **kwargs: Any) -> float:
    return repetition(torch.sum(x, *args, **kwargs), x)


def _mean(x: Tensor, *args: Any, **kwargs: Any) -> float:
    return repetition(x, torch.mean(x, *args, **kwargs))


MOVE_FACTORS: list[tuple[Sequence[Any], Factor]] = [
    (
        [
            *(torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, torch.unflatten, Tensor.unflatten),
            *(torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, torch.movedim, Tensor.movedim),
            *(torch.t, Tensor.t, *_getters("T", "mT"), torch.swapaxes, Tensor.swapaxes, torch.flip, Tensor.flip),
            *(torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze, torch.roll, Tensor.roll),
            *(Tensor.contiguous, torch.clone, Tensor.clone, torch.detach, Tensor.detach),
            *(Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16),
            *(torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.unbind, Tensor.unbind),
            *(torch.narrow, Tensor.narrow, torch.select, Tensor.select),
            *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
            *(torch.amax, Tensor.amax, torch.amin, Tensor.amin),
        ],
        always(1.0),
    ),
    ([Tensor.__getitem__], _getitem),
    ([Tensor.view], _view),
    ([Tensor.expand], _expand),
    ([Tensor.repeat], _repeat),
    ([F.pad], _pad),
    ([torch.sum, Tensor.sum], _summed),
    ([torch.mean, Tensor.mean], _mean),
]


def _add(x: Any, other: Any, *, alpha: Number = 1) -> Bound:
    return Bound(_summand(x, other) + largest(alpha) * _summand(other, x))


def _summand(x: Any, beside: Any) -> float:
    return x.bound.constant * expansion(x.value, plain(beside)) if isinstance(x, BoundedTensor) else 0.0


def _mul(x: Any, other: Any) -> Bound:
    tensor, constant = (x, other) if isinstance(x, BoundedTensor) else (other, x)
    if isinstance(constant, BoundedTensor):
        raise NoRuleError("a product of two tensors that depend on the input has no largest slope")
    return Bound(_summand(tensor, constant) * largest(constant))


def _div(x: Any, other: Any, *, rounding_mode: str | None = None) -> Bound:
    if isinstance(other, BoundedTensor) or rounding_mode is not None:
        raise NoRuleError("a division that is rounded or by what depends on the input has no largest slope")
    return Bound(_summand(x, other) * largest(1 / wide_weight(other)))


def _cat(tensors: Iterable[Tensor], dim: int = 0) -> Bound:
    return Bound(hypot(*(part.bound.constant for part in tensors if isinstance(part, BoundedTensor))))


ARITHMETIC_RULES: list[tuple[Sequence[Any], Rule]] = [
    ([torch.add, Tensor.add, Tensor.add_, torch.sub, Tensor.sub, Tensor.sub_, Tensor.__rsub__], _add),
    ([torch.mul, Tensor.mul, Tensor.mul_], _mul),
    ([torch.div, Tensor.div, Tensor.div_], _div),
    ([torch.cat, torch.concat, torch.stack], _cat),
]
