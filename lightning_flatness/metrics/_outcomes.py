"""Outcomes of samples: checked, and counted into shares."""

from collections.abc import Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from lightning_flatness.functional._numerics import wide
from lightning_flatness.functional.statistics import wilson_interval

Values = dict[str, Tensor]


def check_per_sample(samples: int, tensors: Mapping[str, Tensor | None]) -> None:
    """Raise ``ValueError`` unless each of ``tensors`` that is given holds one value per sample."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != (samples,):
            raise ValueError(f"`{name}` must hold one value per sample, shape ({samples},), got {tuple(tensor.shape)}.")


def check_flags(samples: int, flags: Mapping[str, Tensor | None]) -> None:
    """Raise ``ValueError`` unless each of ``flags`` that is given says yes or no of every sample."""
    check_per_sample(samples, flags)
    for name, flag in flags.items():
        if flag is not None and flag.dtype != torch.bool:
            raise ValueError(f"`{name}` must be boolean, got {flag.dtype}.")


def proportion(name: str, part: Shaped[Tensor, "*n"], whole: Int[Tensor, "*n"]) -> Values:
    """``part / whole`` under its name; no entry where there is nothing to take part of."""
    return {name: wide(part) / wide(whole)} if bool(whole.any()) else {}


def with_interval(name: str, part: Int[Tensor, "*n"], whole: Int[Tensor, "*n"], confidence: float) -> Values:
    """:func:`proportion` and the ends of its Wilson interval, ``{name}_low`` and ``{name}_high``."""
    values = proportion(name, part, whole)
    if not values:
        return {}
    low, high = wilson_interval(part, whole, confidence)
    return {**values, f"{name}_low": low, f"{name}_high": high}
