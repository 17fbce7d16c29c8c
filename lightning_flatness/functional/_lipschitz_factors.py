"""What the Lipschitz rules share."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from lightning_flatness.functional._lipschitz_tensor import Bound, BoundedTensor, NoRuleError, Rule, depends_on_input

Number = float | int
Factor = Callable[..., float]
"""Maps a tensor and the other arguments of a torch function to the Lipschitz constant of that function."""


def scaling(factor: Factor) -> Rule:
    """Rule of a function of one tensor: its Lipschitz constant times the tensor's."""

    def rule(x: BoundedTensor, *args: Any, **kwargs: Any) -> Bound:
        if not isinstance(x, BoundedTensor) or depends_on_input(args, kwargs):
            raise NoRuleError("a parameter of an operation depends on the input")
        return Bound(x.bound.constant * factor(x.value, *args, **kwargs))

    return rule


def always(constant: float) -> Factor:
    """Factor that no argument changes."""
    return lambda *_, **__: constant


def wide_weight(weight: Tensor | Number) -> Tensor:
    """Return what does not depend on the input in float64 on the CPU, or raise where it is not finite."""
    values = torch.as_tensor(weight).detach().to("cpu", torch.float64)
    if not bool(values.isfinite().all()):
        raise NoRuleError(f"a weight or constant is {values[~values.isfinite()][0].item()}")
    return values


def largest(constant: Tensor | Number) -> float:
    """Largest absolute value of what does not depend on the input."""
    values = wide_weight(constant)
    return float(values.abs().max()) if values.numel() else 0.0


def repetition(x: Tensor, repeated: Tensor) -> float:
    """Norm of the function that repeats all of ``x`` as often as it stands in ``repeated``."""
    return sqrt(repeated.numel() / max(1, x.numel()))


def expansion(x: Tensor, *others: Any) -> float:
    """Norm of broadcasting ``x`` against the tensors among ``others``."""
    tensors = [other for other in others if isinstance(other, Tensor)]
    return repetition(x, torch.broadcast_tensors(x, *tensors)[0])  # type: ignore[no-untyped-call]
