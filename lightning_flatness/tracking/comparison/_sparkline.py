"""Curves as small as words."""

from collections.abc import Sequence
from math import isfinite, log10

from lightning_flatness.tracking._choice import evenly_chosen

_WIDTH, _HEIGHT, _PAD = 72.0, 20.0, 2.0
_MOST_POINTS = 48


def sparkline(values: Sequence[float], low: float, high: float, *, log: bool) -> str:
    """A curve as an SVG image, in the range that all runs share; values that are not finite are gaps.

    Args:
        values: in order.
        low: smallest value of all runs.
        high: largest value of all runs.
        log: whether heights are those of logarithms, which leaves out what is not above 0.
    """
    chosen = evenly_chosen(list(enumerate(values)), _MOST_POINTS)
    heights = [_height(value, low, high, log=log) for _, value in chosen]
    step = (_WIDTH - 2 * _PAD) / max(1, len(chosen) - 1)
    pieces: list[list[str]] = [[]]
    for place, height in enumerate(heights):
        if height is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_PAD + place * step:.1f},{height:.1f}")
    lines = "".join(f'<polyline points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1)
    lone = [piece[0] for piece in pieces if len(piece) == 1]
    dots = "".join('<circle cx="{}" cy="{}" r="1.5"/>'.format(*point.split(",")) for point in lone)
    return (
        f'<svg class="spark" width="{_WIDTH:g}" height="{_HEIGHT:g}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" '
        f'aria-hidden="true">{lines}{dots}</svg>'
    )


def _height(value: float, low: float, high: float, *, log: bool) -> float | None:
    if not isfinite(value) or (log and value <= 0):
        return None
    if log:
        value, low, high = log10(value), log10(low), log10(high)
    share = (value - low) / (high - low) if high > low else 0.5
    return _HEIGHT - _PAD - share * (_HEIGHT - 2 * _PAD)
