"""Largest slopes of activations, rounded up in the last digit. Where slopes have no bound, there is no rule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name

from lightning_flatness.functional._lipschitz_factors import Factor, Number, always, expansion, largest
from lightning_flatness.functional._lipschitz_tensor import NoRuleError


def _leaky_relu(_: Tensor, negative_slope: Number = 0.01, inplace: bool = False) -> float:
    return max(1.0, largest(negative_slope))


def _prelu(_: Tensor, weight: Tensor) -> float:
    return max(1.0, largest(weight))


def _rrelu(
    _: Tensor, lower: Number = 1 / 8, upper: Number = 1 / 3, training: bool = False, inplace: bool = False
) -> float:
    if training:
        raise NoRuleError("rrelu is in training mode")
    return max(1.0, largest((lower + upper) / 2))


def _elu(_: Tensor, alpha: Number = 1.0, inplace: bool = False) -> float:
    return max(1.0, largest(alpha))


def _celu(_: Tensor, alpha: Number = 1.0, inplace: bool = False) -> float:
    if alpha < 0:
        raise NoRuleError(f"celu with `alpha` {alpha} has no largest slope")
    return 1.0


def _softplus(_: Tensor, beta: Number = 1.0, threshold: Number = 20.0) -> float:
    if beta <= 0 or threshold < 20:
        raise NoRuleError(f"softplus with `beta` {beta} and `threshold` {threshold} jumps")
    return 1.0


def _gelu(_: Tensor, approximate: str = "none") -> float:
    return 1.12891 if approximate == "none" else 1.12901


def _clamp(x: Tensor, *limits: Any, **named_limits: Any) -> float:
    return expansion(x, *limits, *named_limits.values())


def _dropout(_: Tensor, p: Number = 0.5, training: bool = True, inplace: bool = False) -> float:
    if training and p > 0:
        raise NoRuleError("dropout is in training mode")
    return 1.0


ACTIVATION_FACTORS: list[tuple[Sequence[Any], Factor]] = [
    (
        [
            *(F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
            *(F.relu6, F.hardtanh, F.hardtanh_, F.softsign, F.softshrink, F.logsigmoid),
            *(F.tanh, torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanhshrink),
            *(torch.abs, Tensor.abs, Tensor.abs_, torch.neg, Tensor.neg, Tensor.neg_),
            *(torch.sin, Tensor.sin, torch.cos, Tensor.cos, torch.atan, Tensor.atan),
        ],
        always(1.0),
    ),
    ([F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_], always(0.25)),
    ([F.hardsigmoid], always(0.16667)),
    ([F.hardswish], always(1.5)),
    ([F.selu, F.selu_, torch.selu, torch.selu_], always(1.7581)),
    ([F.silu], always(1.09984)),
    ([F.mish], always(1.08850)),
    # uᵀ(diag p - ppᵀ)u is a variance of the entries of u: at most a quarter of their squared range, at most ½‖u‖².
    ([F.softmax, torch.softmax, Tensor.softmax], always(0.5)),
    ([F.gelu], _gelu),
    ([F.leaky_relu, F.leaky_relu_], _leaky_relu),
    ([F.prelu, torch.prelu], _prelu),
    ([F.rrelu], _rrelu),
    ([F.elu, F.elu_], _elu),
    ([F.celu, F.celu_], _celu),
    ([F.softplus], _softplus),
    ([torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_max], _clamp),
    ([F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout], _dropout),
]
