"""What a row, a summary and a configuration of Weights & Biases hold, told apart."""

from collections.abc import Mapping
from typing import Any

from lightning_flatness.tracking._epochs import Row
from lightning_flatness.tracking.runs._config import Configuration, flat

_SPELLED = ("NaN", "Infinity", "-Infinity")
"""Numbers that JSON does not have, as the server writes them."""


def numbers(row: Mapping[str, Any]) -> Row:
    """The numbers of a history row; media, nested values, words and what Weights & Biases adds are left out.

    Args:
        row: key → value.

    Example:
        >>> numbers({"_step": 3, "epoch": 1, "val_loss": "NaN", "picture": {"_type": "image-file"}, "lr": None})
        {'epoch': 1.0, 'val_loss': nan}
    """
    found = {name: _number(value) for name, value in row.items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if value is not None}


def texts(summary: Mapping[str, Any]) -> dict[str, str]:
    r"""The words of a summary; a list of sentences becomes one text with a line for each.

    Args:
        summary: key → value.

    Example:
        >>> texts({"masking/reasons": ["One.", "Two."], "val_loss": 0.5})
        {'masking/reasons': 'One.\nTwo.'}
    """
    found = {}
    for name, value in summary.items():
        lines = [value] if isinstance(value, str) else value
        is_own = not name.startswith("_") and value not in _SPELLED
        if is_own and isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            found[name] = "\n".join(lines)
    return found


def settings(config: Mapping[str, Any]) -> Configuration:
    """The configuration under dotted names, without what Weights & Biases adds.

    Args:
        config: as the user's program set it.
    """
    return flat({name: value for name, value in config.items() if not name.startswith("_")})


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or value in _SPELLED):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number with more than 308 digits
        return float("inf") if value > 0 else float("-inf")
