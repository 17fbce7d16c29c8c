"""The runs in a few numbers: last, smallest or largest values, and in what their settings differ."""

import json
from collections.abc import Sequence
from math import isnan
from typing import Any, NamedTuple

from lightning_flatness.tracking._labels import logged
from lightning_flatness.tracking.directions import extreme_is
from lightning_flatness.tracking.runs import Run
from lightning_flatness.tracking.wandb_run import STEP_KEY

_AXES = {"epoch", "step", STEP_KEY}
_LARGEST_EXACT = 2**53
"""Up to here, every whole number is a float of its own."""


class KeySummary(NamedTuple):
    """What a run has reached under one key.

    Args:
        last: value in the last epoch that has one, NaN if it was that.
        epoch_of_last: that epoch.
        extreme: smallest or largest value, as :func:`~lightning_flatness.tracking.directions.extreme_is` says; None
            where neither is shown, or no value is a number.
        epoch_of_extreme: first epoch that has it.
    """

    last: float
    epoch_of_last: float
    extreme: float | None = None
    epoch_of_extreme: float | None = None


def summarise(run: Run) -> dict[str, KeySummary]:
    """Give the last, smallest or largest value of every key but epoch and step, in the order of first appearance.

    Args:
        run: with any keys, in any of its epochs.

    Returns:
        Key → what it has reached.

    Example:
        >>> run = Run("first", "", [{"epoch": 0.0, "val_loss": 0.5}, {"epoch": 1.0, "val_loss": 0.75}])
        >>> summarise(run)["val_loss"]
        KeySummary(last=0.75, epoch_of_last=1.0, extreme=0.5, epoch_of_extreme=0.0)
    """
    return {key: _summary(run, key) for key in logged(run.epochs) if key not in _AXES}


def differing_config(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Find the settings in which runs differ; a setting that only some of them have is one.

    Args:
        runs: to compare.

    Returns:
        Name → the setting of each run as text, None where it has none; sorted by name.

    Example:
        >>> differing_config([Run("a", "", [], {"lr": 0.1, "seed": 0}), Run("b", "", [], {"lr": 1.0, "seed": 0})])
        {'lr': ['0.1', '1']}
    """
    names = sorted({name for run in runs for name in run.config})
    table = {name: [config_text(run.config[name]) if name in run.config else None for run in runs] for name in names}
    return {name: row for name, row in table.items() if len(set(row)) > 1}


def config_text(value: Any) -> str:
    """Write a setting so that equal settings have equal texts, whichever logger kept them.

    Args:
        value: a plain value, list or dictionary.

    Returns:
        Text, the same for ``1`` and ``1.0``.

    Example:
        >>> [config_text(value) for value in (1, 1.0, True, None, "adam", [0.9, 0.999])]
        ['1', '1', 'true', 'null', 'adam', '[0.9, 0.999]']
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT:
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(config_text, value))}]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _summary(run: Run, key: str) -> KeySummary:
    points = [(row[key], row["epoch"]) for row in run.epochs if key in row]
    last = points[-1]
    extreme = extreme_is(key)
    known = [point for point in points if not isnan(point[0])]
    if extreme is None or not known:
        return KeySummary(*last)
    return KeySummary(*last, *(min if extreme == "min" else max)(known, key=lambda point: point[0]))
