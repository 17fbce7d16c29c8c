"""What the page says of the runs in words and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isinf, isnan
from typing import NamedTuple

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import robust_accuracies
from lightning_flatness.tracking.comparison._curves import curve, every_key
from lightning_flatness.tracking.comparison._epoch_words import in_epochs
from lightning_flatness.tracking.comparison._naming import OWN_GROUP, name_of
from lightning_flatness.tracking.comparison._places import apart
from lightning_flatness.tracking.comparison._styles import Style, styles
from lightning_flatness.tracking.comparison.alarms import alarms, remarks
from lightning_flatness.tracking.comparison.summary import KeySummary, summarise
from lightning_flatness.tracking.directions import extreme_is
from lightning_flatness.tracking.runs import Run
from lightning_flatness.tracking.runs._names import told_apart

_MOST_ATTACKS = 3
_CLEAN = f"_{keys.CLEAN_ACCURACY}"
_ROBUST = f"_{keys.ROBUST_ACCURACY}"
_WORST = keys.attack_key(keys.WORST_CASE, keys.ROBUST_ACCURACY)


class Standing(NamedTuple):
    """Last value of a run under a key, and its place among the runs that logged it, 1 being the highest."""

    title: str
    value: float
    rank: int
    runs: int


@dataclass(frozen=True)
class Content:
    """Runs with names of their own, and what is told of each, in the same order.

    Args:
        runs: with an epoch in every row.
        alarms: why the run should not be believed, in paragraphs.
        remarks: which of its curves are no evidence, in sentences.
        summaries: last, and smallest or largest value by key.
        look: colour, marker and dashes.
        every_key: that any run has logged, in the order of the page.
        columns: keys of the table.
    """

    runs: Sequence[Run]
    alarms: Sequence[Sequence[str]]
    remarks: Sequence[Sequence[str]]
    summaries: Sequence[Mapping[str, KeySummary]]
    look: Sequence[Style]
    every_key: Sequence[str]
    columns: Sequence[str]

    @property
    def names(self) -> list[str]:
        """What each run is called."""
        return [run.name for run in self.runs]


def content_of(runs: Sequence[Run]) -> Content:
    """Prepare what is shown of runs.

    Args:
        runs: with any names; a row without an epoch gets its own number.
    """
    numbered = [
        replace(run, epochs=[{"epoch": float(place), **row} for place, row in enumerate(run.epochs)]) for run in runs
    ]
    apart = told_apart(numbered)
    reasons, weak = [alarms(run) for run in apart], [remarks(run) for run in apart]
    summaries = [summarise(run) for run in apart]
    names = every_key(summaries)
    columns = _columns(apart, summaries, names)
    return Content(apart, reasons, weak, summaries, styles([bool(one) for one in reasons]), names, columns)


def is_checked(run: Run) -> bool:
    """Whether the run was looked at for gradient masking, under any group and in any stage."""
    return any(keys.ALARM in key for row in run.epochs for key in row)


def standings(content: Content, place: int) -> list[Standing]:
    """Where a run stands by the robust accuracies among the columns."""
    found = []
    for key in content.columns:
        if key.endswith(keys.ROBUST_ACCURACY) and key in content.summaries[place]:
            own = content.summaries[place][key].last
            last = [summary[key].last for summary in content.summaries if key in summary]
            if isnan(own):
                continue
            found.append(Standing(name_of(key).title, own, 1 + sum(one > own for one in last), len(last)))
    return found


def scatter_pairs(content: Content) -> list[tuple[str, str]]:
    """Keys of the first two scatters: κ, and the robust accuracy of the main attack, then the clean accuracy."""
    names = content.every_key
    flat = [key for key in names if key.startswith(f"{keys.FLATNESS_GROUP}/")]
    robust = [key for key in names if key.startswith(f"{keys.ATTACK_GROUP}/") and apart(key)[0].endswith(_ROBUST)]
    robust.sort(key=lambda key: (_WORST not in key, _success_rate(key) not in names))
    clean = [key for key in content.columns if name_of(key).group == OWN_GROUP and extreme_is(key) == "max"]
    clean += [key for key in names if key.endswith(_CLEAN)]
    ups = [*robust[:1], *clean[:1]] or names[1:2] or names[:1]
    return [(across, up) for across in (flat or names)[:1] for up in ups]


def _success_rate(key: str) -> str:
    """Of the attack of a robust accuracy; other radii, whose inputs come from the same search, have none."""
    return key.replace(keys.ROBUST_ACCURACY, keys.SUCCESS_RATE)


def undefined_values(content: Content) -> list[str]:
    """Sentences about values that no figure can show."""
    notes = []
    for run, summary in zip(content.runs, content.summaries, strict=True):
        for key in summary:
            epochs, values = curve(run.epochs, key)
            if all(map(isfinite, values)):
                continue
            for word, is_such in (("NaN", isnan), ("infinite", isinf)):
                found = [epoch for epoch, value in zip(epochs, values, strict=True) if is_such(value)]
                if found:
                    notes.append(f"{run.name}: {key} was {word} {in_epochs(found)}.")
    return notes


def _columns(runs: Sequence[Run], summaries: Sequence[Mapping[str, KeySummary]], names: Sequence[str]) -> list[str]:
    """κ, robust accuracies, one accuracy by bounds, and the user's own accuracy and loss, those of most runs."""

    def most_common(found: Sequence[str], most: int) -> list[str]:
        return sorted(found, key=lambda key: -sum(key in summary for summary in summaries))[:most]

    def own(extreme: str) -> list[str]:
        found = [key for key in names if name_of(key).group == OWN_GROUP and extreme_is(key) == extreme]
        return sorted(found, key=lambda key: "val" not in key.lower())

    attacked = list(dict.fromkeys(key for run in runs for key in robust_accuracies(run.epochs)))
    bounds = [key for key in names if key.startswith(("bound/certified_acc", "bound/estimated_acc"))]
    return [
        *[key for key in names if key == keys.RELATIVE_FLATNESS],
        *most_common([key for key in attacked if key != _WORST], _MOST_ATTACKS),
        *[key for key in names if key == _WORST],
        *most_common(bounds, 1),
        *most_common(own("max"), 1),
        *most_common(own("min"), 1),
    ] or most_common(names, 4)
