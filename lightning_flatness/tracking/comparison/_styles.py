"""How runs are told apart: by colour, marker and dashes, each enough for a few; what alarms is red and crossed."""

from collections.abc import Sequence
from typing import NamedTuple

_COLOURS = 6
_DASHES = 5
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "hexagon")


class Style(NamedTuple):
    """Numbers of colour and dashes as the style sheet has them; the colour of a run with an alarm is ``alarm``."""

    colour: str
    dash: int
    symbol: str
    alarmed: bool


def styles(alarmed: Sequence[bool]) -> list[Style]:
    """A style for each run, all unlike as long as there are no more than 180 runs without and 5 with an alarm."""
    found = []
    counts = {True: 0, False: 0}
    for warned in alarmed:
        place = counts[warned]
        counts[warned] += 1
        if warned:
            found.append(Style("alarm", place % _DASHES, "x", alarmed=True))
        else:
            dash, symbol = place // _COLOURS % _DASHES, (place + place // (_COLOURS * _DASHES)) % len(_SYMBOLS)
            found.append(Style(str(place % _COLOURS), dash, _SYMBOLS[symbol], alarmed=False))
    return found
