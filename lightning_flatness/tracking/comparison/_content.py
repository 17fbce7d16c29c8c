"""What the page says of the runs in words and tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, isinf, isnan
from typing import Any, NamedTuple

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import robust_accuracies
from lightning_flatness.tracking.comparison._curves import curve, every_key
from lightning_flatness.tracking.comparison._naming import OWN_GROUP, name_of
from lightning_flatness.tracking.directions import best_is
from lightning_flatness.tracking.runs import Run

_MOST_ATTACKS = 3
_MOST_OWN = 2


class Summary(NamedTuple):
    """Last and best value of a key in a run, and the epoch of the best; None where there is none."""

    last: float | None = None
    best: float | None = None
    epoch: float | None = None


class Standing(NamedTuple):
    """Last value of a run under a key, and its place among the runs that logged it, 1 being the best."""

    title: str
    value: float
    rank: int
    runs: int


def labels(runs: Sequence[Run]) -> list[str]:
    """Name of each run as the page shows it, unlike any other's."""
    counts = Counter(run.name for run in runs)
    taken = {name for name, count in counts.items() if count == 1}
    shown = []
    for run in runs:
        label, number = run.name.strip() or "(no name)", 1
        while counts[run.name] > 1 and (number == 1 or label in taken):
            label = f"{run.name.strip() or '(no name)'} ({number})"
            number += 1
        taken.add(label)
        shown.append(label)
    return shown


def summary(run: Run, key: str) -> Summary:
    """Last and best value of a key."""
    epochs, values = curve(run.epochs, key)
    if not values:
        return Summary()
    best = best_is(key)
    known = [(value, epoch) for epoch, value in zip(epochs, values, strict=True) if not isnan(value)]
    if best is None or not known:
        return Summary(values[-1])
    value, epoch = (min if best == "min" else max)(known, key=lambda point: point[0])
    return Summary(values[-1], value, epoch)


def alarms(run: Run) -> list[str]:
    """Reasons not to believe the robust accuracy of a run."""
    return [words for key, words in run.texts.items() if key.endswith(keys.MASKING_REASONS) and words]


def is_checked(run: Run) -> bool:
    """Whether the run was looked at for gradient masking."""
    return any(keys.ALARM in row for row in run.epochs)


def main_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of the columns of the table: κ, robust accuracy, bounds, and the user's own accuracy and loss."""
    names = every_key(runs)
    coverage = {name: sum(any(name in row for row in run.epochs) for run in runs) for name in names}

    def most_common(found: Sequence[str], most: int) -> list[str]:
        return sorted(found, key=lambda name: -coverage[name])[:most]

    attacked = list(dict.fromkeys(name for run in runs for name in robust_accuracies(run.epochs)))
    worst = keys.attack_key(keys.WORST_CASE, keys.ROBUST_ACCURACY)
    accuracies = [name for name in names if name.startswith(("bound/certified_acc", "bound/estimated_acc"))]
    own = [name for name in names if name_of(name).group == OWN_GROUP]
    return [
        *[name for name in (keys.RELATIVE_FLATNESS,) if name in coverage],
        *most_common([name for name in attacked if name != worst], _MOST_ATTACKS),
        *[name for name in (worst,) if name in coverage],
        *most_common(accuracies, 1),
        *most_common(_validation_first(own, "max"), _MOST_OWN // 2),
        *most_common(_validation_first(own, "min"), _MOST_OWN // 2),
    ] or most_common(names, 4)


def scatter_pairs(runs: Sequence[Run], columns: Sequence[str]) -> list[tuple[str, str]]:
    """Keys of the first two scatters: κ, and the robust accuracy of one attack, then the clean accuracy."""
    names = every_key(runs)
    flat = next((name for name in names if name.startswith(f"{keys.FLATNESS_GROUP}/")), None)
    robust = [name for name in columns if name.endswith(keys.ROBUST_ACCURACY)]
    clean = [name for name in columns if name_of(name).group == OWN_GROUP and best_is(name) == "max"]
    clean += [name for name in names if name.endswith(keys.CLEAN_ACCURACY)]
    across = flat or next(iter(names), None)
    ups = [*robust[:1], *clean[:1]] or names[1:2] or names[:1]
    return [(across, up) for up in ups] if across else []


def _validation_first(names: Sequence[str], best: str) -> list[str]:
    found = [name for name in names if best_is(name) == best]
    return sorted(found, key=lambda name: "val" not in name.lower())


def standings(runs: Sequence[Run], place: int, columns: Sequence[str]) -> list[Standing]:
    """Where a run stands by the robust accuracies among the columns."""
    found = []
    for name in columns:
        last = [values[-1] for run in runs if (values := curve(run.epochs, name)[1])]
        own = curve(runs[place].epochs, name)[1]
        if name.endswith(keys.ROBUST_ACCURACY) and own:
            found.append(Standing(name_of(name).title, own[-1], 1 + sum(one > own[-1] for one in last), len(last)))
    return found


def differing_config(runs: Sequence[Run]) -> Mapping[str, Sequence[Any]]:
    """Settings that are not the same in all runs; None where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(str(one) != str(row[0]) for one in row)}


def undefined_values(runs: Sequence[Run], shown: Sequence[str]) -> list[str]:
    """Sentences about values that no figure can show."""
    notes = []
    for run, label in zip(runs, shown, strict=True):
        for key in every_key([run]):
            epochs, values = curve(run.epochs, key)
            if all(isfinite(value) for value in values):
                continue
            for word, is_such in (("NaN", isnan), ("infinite", isinf)):
                found = [epoch for epoch, value in zip(epochs, values, strict=True) if is_such(value)]
                if found:
                    notes.append(f"{label}: {key} was {word} {_times(found)}.")
    return notes


def _times(epochs: Sequence[float]) -> str:
    first = ", ".join(f"{epoch:g}" for epoch in epochs[:6])
    more = f" and {len(epochs) - 6} more" if len(epochs) > 6 else ""
    return f"in epoch {first}{more}" if len(epochs) == 1 else f"in epochs {first}{more}"
