"""Lipschitz constants of layers: linear maps, convolutions, pooling and normalisation."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional._lipschitz_factors import Factor, Number, largest, wide_weight
from lightning_flatness.functional._lipschitz_norms import Convolution, matrix_norm, separable_norm
from lightning_flatness.functional._lipschitz_tensor import (
    Bound,
    BoundedTensor,
    LinearBound,
    NoRuleError,
    Rule,
    depends_on_input,
)

PerDim = int | Sequence[int]


def _per_dim(values: PerDim, dims: int) -> tuple[int, ...]:
    spread = (values,) if isinstance(values, int) else tuple(values)
    return spread * dims if len(spread) == 1 else spread


def _check_constant(*parameters: Tensor | None) -> None:
    if depends_on_input(parameters):
        raise NoRuleError("a weight depends on the input")


# Linear maps. Only a batch of vectors or images has its channels where batch normalisation looks for them.


def _linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Bound:
    _check_constant(weight, bias)
    linear = LinearBound(x.bound.constant, wide_weight(weight), matrix_norm)
    return linear if x.value.ndim == 2 else Bound(linear.constant)


def _matmul(x: Any, other: Any) -> Bound:
    vectors, matrix = (x, other) if isinstance(x, BoundedTensor) else (other, x)
    if isinstance(matrix, BoundedTensor):
        raise NoRuleError("a product of two tensors that depend on the input has no largest slope")
    if matrix.ndim > 2:
        raise NoRuleError("the matrix of a product has more than 2 dimensions")
    return Bound(vectors.bound.constant * matrix_norm(wide_weight(matrix).view(len(matrix), -1)))


def _convolution(dims: int) -> Rule:
    def rule(
        x: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: PerDim = 1,
        padding: PerDim | str = 0,
        dilation: PerDim = 1,
        groups: int = 1,
    ) -> Bound:
        _check_constant(weight, bias)
        stride, dilation = _per_dim(stride, dims), _per_dim(dilation, dims)
        spans = [step * (taps - 1) for step, taps in zip(dilation, weight.shape[2:], strict=True)]
        if isinstance(padding, str):
            pads = tuple((span // 2, span - span // 2) if padding == "same" else (0, 0) for span in spans)
        else:
            pads = tuple((pad, pad) for pad in _per_dim(padding, dims))
        layer = Convolution(tuple(x.value.shape[-dims:]), stride, pads, dilation, groups)
        linear = LinearBound(x.bound.constant, wide_weight(weight), layer.norm)
        return linear if x.value.ndim == dims + 2 else Bound(linear.constant)

    return rule


# Pooling. A maximum moves by no more than the input that moves most in its window.


def _max_pool(dims: int) -> Factor:
    def factor(
        x: Tensor,
        kernel_size: PerDim,
        stride: PerDim | None = None,
        padding: PerDim = 0,
        dilation: PerDim = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> float:
        kernel = _per_dim(kernel_size, dims)
        steps = zip(
            x.shape[-dims:],
            kernel,
            _per_dim(stride or kernel, dims),
            _per_dim(padding, dims),
            _per_dim(dilation, dims),
            strict=True,
        )
        return sqrt(
            prod(
                _overlap(length, _windows(length, taps, step, pad, spread, ceil_mode))
                for length, taps, step, pad, spread in steps
            )
        )

    return factor


def _windows(length: int, taps: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> Iterable[range]:
    span = dilation * (taps - 1)
    starts = range(-pad, length + pad - span + (stride - 1 if ceil_mode else 0), stride)
    return (range(start, start + span + 1, dilation) for start in starts)


def _overlap(length: int, windows: Iterable[range]) -> int:
    """Most windows that one position of the input lies in."""
    hits = Counter(place for window in windows for place in window if 0 <= place < length)
    return max(hits.values())


def _adaptive_max_pool(dims: int) -> Factor:
    def factor(x: Tensor, output_size: Any, return_indices: bool = False) -> float:
        sizes = zip(x.shape[-dims:], _adaptive_size(output_size, dims), strict=True)
        return sqrt(prod(_overlap(length, _adaptive_windows(length, count or length)) for length, count in sizes))

    return factor


def _adaptive_windows(length: int, count: int) -> Iterable[range]:
    return (range(index * length // count, -(-(index + 1) * length // count)) for index in range(count))


def _adaptive_size(output_size: Any, dims: int) -> tuple[int | None, ...]:
    spread = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,)
    return spread * dims if len(spread) == 1 else spread


def _avg_pool(dims: int) -> Factor:
    def factor(
        x: Tensor,
        kernel_size: PerDim,
        stride: PerDim | None = None,
        padding: PerDim = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> float:
        if divisor_override is not None:
            raise NoRuleError("average pooling with `divisor_override` has no rule")
        kernel = _per_dim(kernel_size, dims)
        steps = zip(x.shape[-dims:], kernel, _per_dim(stride or kernel, dims), _per_dim(padding, dims), strict=True)
        return separable_norm([
            F.avg_pool1d(_rows(length), taps, step, pad, ceil_mode, count_include_pad).squeeze(1)
            for length, taps, step, pad in steps
        ])

    return factor


def _adaptive_avg_pool(dims: int) -> Factor:
    def factor(x: Tensor, output_size: Any) -> float:
        sizes = zip(x.shape[-dims:], _adaptive_size(output_size, dims), strict=True)
        return separable_norm([F.adaptive_avg_pool1d(_rows(length), n or length).squeeze(1) for length, n in sizes])

    return factor


def _rows(length: int) -> Float[Tensor, "length channel length"]:
    """Every unit vector; their images are the transposed matrix of a linear function."""
    return torch.eye(length, dtype=torch.float64).unsqueeze(1)


# Normalisation. Where the statistics are the input's own, the Jacobian is a contraction times γ / √(variance + eps).


def _batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Number = 0.1,
    eps: Number = 1e-5,
) -> Bound:
    _check_constant(running_mean, running_var, weight, bias)
    if training or running_mean is None or running_var is None:
        raise NoRuleError("batch normalisation by the statistics of the batch mixes samples")
    scale = (wide_weight(running_var) + eps).rsqrt()
    if weight is not None:
        scale = scale * wide_weight(weight)
    if isinstance(x.bound, LinearBound):
        largest(scale)
        return x.bound.rescaled(scale)
    return Bound(x.bound.constant * largest(scale))


def _own_statistics(weight: Tensor | None, eps: Number) -> float:
    if eps <= 0:
        raise NoRuleError("a normalisation without `eps` has no largest slope")
    return (1.0 if weight is None else largest(weight)) / sqrt(eps)


def _layer_norm(_: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Number = 1e-5) -> float:
    return _own_statistics(weight, eps)


def _rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: Number | None = None) -> float:
    if eps is None:
        # That of the accumulation, not of bf16 or fp16.
        eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    return _own_statistics(weight, eps)


def _group_norm(_: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: Number = 1e-5) -> float:
    return _own_statistics(weight, eps)


def _instance_norm(
    x: Any,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: Number = 0.1,
    eps: Number = 1e-5,
) -> Bound:
    if use_input_stats:
        _check_constant(weight, bias)
        return Bound(x.bound.constant * _own_statistics(weight, eps))
    return _batch_norm(x, running_mean, running_var, weight, bias, momentum=momentum, eps=eps)


LAYER_FACTORS: list[tuple[Sequence[Any], Factor]] = [
    ([F.max_pool1d], _max_pool(1)),
    ([F.max_pool2d], _max_pool(2)),
    ([F.adaptive_max_pool1d], _adaptive_max_pool(1)),
    ([F.adaptive_max_pool2d], _adaptive_max_pool(2)),
    ([F.avg_pool1d], _avg_pool(1)),
    ([F.avg_pool2d], _avg_pool(2)),
    ([F.adaptive_avg_pool1d], _adaptive_avg_pool(1)),
    ([F.adaptive_avg_pool2d], _adaptive_avg_pool(2)),
    ([F.layer_norm], _layer_norm),
    ([F.group_norm], _group_norm),
    ([F.rms_norm], _rms_norm),
]
LAYER_RULES: list[tuple[Sequence[Any], Rule]] = [
    ([F.linear], _linear),
    ([torch.matmul, Tensor.matmul, torch.mm, Tensor.mm], _matmul),
    ([F.conv1d], _convolution(1)),
    ([F.conv2d], _convolution(2)),
    ([F.batch_norm], _batch_norm),
    ([F.instance_norm], _instance_norm),
]
