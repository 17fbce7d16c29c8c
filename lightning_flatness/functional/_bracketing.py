"""Inverse of an increasing function of one variable, for many samples at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_TOLERANCE = 1e-7  # relative
_ITERATIONS = 200


def largest_below(
    function: Callable[[Float[Tensor, " batch"]], Float[Tensor, " batch"]],
    value: Float[Tensor, " batch"],
    low: Float[Tensor, " batch"],
    high: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Largest arguments at which ``function`` is at most ``value``, to 1e-7 relative and never above.

    Regula falsi in logarithms with the Illinois rule; every third step halves the bracket, whatever the function.

    Args:
        function: increasing and positive.
        value: > 0.
        low: arguments > 0 at which the function is at most ``value``.
        high: arguments at which it is at least that; where infinite, the result is infinite, too.

    Returns:
        Arguments.
    """
    unbounded = high.isinf()
    # A hair lower, where rounding cannot lift the function above the value.
    left, right = (end.masked_fill(unbounded, 1.0).log() for end in (low * (1 - 1e-9), high))

    def evaluate(log_argument: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of function over value, and whether that is at most 0, without the rounding of logarithms."""
        found = function(log_argument.exp())
        return found.clamp(min=1e-300).log() - value.log(), found <= value

    below, above = evaluate(left)[0].clamp(max=-1e-16), evaluate(right)[0].clamp(min=1e-16)
    side = torch.zeros_like(value)
    for iteration in range(_ITERATIONS):
        if (right - left <= _TOLERANCE).all():
            break
        crossing = (left * above - right * below) / (above - below)
        middle = (left + right) / 2
        margin = torch.minimum(middle - left, torch.full_like(middle, _TOLERANCE / 3))
        point = middle if iteration % 3 == 2 else torch.minimum(torch.maximum(crossing, left + margin), right - margin)
        found, is_below = evaluate(point)
        # An end that has stayed twice is weighed half, so that the next crossing falls on its side.
        above = torch.where(is_below, torch.where(side > 0, above / 2, above), found)
        below = torch.where(is_below, found, torch.where(side < 0, below / 2, below))
        left, right = torch.where(is_below, point, left), torch.where(is_below, right, point)
        side = is_below.to(value) * 2 - 1
    return left.exp().masked_fill(unbounded, torch.inf)
