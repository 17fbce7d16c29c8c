"""What the figures of the page show: curves of every run over epochs, along paths and over scales of the head."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison._naming import OWN_GROUP, name_of
from lightning_flatness.tracking.csv_log import Row
from lightning_flatness.tracking.directions import is_own_score
from lightning_flatness.tracking.head_scaling import ScalingRow, scaling_rows
from lightning_flatness.tracking.runs import Run

Curve = tuple[Sequence[float], Sequence[float]]
"""Positions, and the value at each of them."""

SECTIONS = {
    keys.FLATNESS_GROUP: "Flatness",
    keys.BOUND_GROUP: "Bounds",
    keys.ATTACK_GROUP: "Attacks",
    keys.MASKING_GROUP: "Masking",
    keys.TRAJECTORY_GROUP: "Trajectory",
    keys.SCALING_GROUP: "Scaling",
    OWN_GROUP: "Loss, accuracy and other own values",
}
"""Group → heading, in the order of the page."""
_ALONG = ("clean", "peak", "final")


@dataclass(frozen=True)
class Figure:
    """One figure; each of its curves belongs to a run, by its place."""

    section: str
    title: str
    curves: Sequence[tuple[int, Curve]]
    key: str = ""
    says: str = ""
    xlabel: str = "epoch"
    unit: str = ""
    log: bool = False
    share: bool = False
    minor: bool = False
    ticks: Sequence[str] = field(default=())
    xlog: bool = False


def every_key(logged: Iterable[Iterable[str]]) -> list[str]:
    """Keys that any run has logged, those whose order the library knows first, then robust accuracies."""
    names = dict.fromkeys(key for run in logged for key in run)
    known = {key: place for place, key in enumerate(dict.fromkeys((*_known_keys(), *names)))}
    return sorted(names, key=lambda name: (not name.endswith(keys.ROBUST_ACCURACY), known[name]))


def figures(runs: Sequence[Run], names: Sequence[str]) -> list[Figure]:
    """Every figure that has a curve.

    Args:
        runs: with an epoch in every row.
        names: every key.
    """
    return [*_along_paths(runs, names), *_over_scales(runs, names), *(_over_epochs(runs, key) for key in names)]


def curve(epochs: Sequence[Row], key: str) -> Curve:
    """What a run has logged under a key, over the epoch."""
    points = [(row["epoch"], row[key]) for row in epochs if key in row]
    return [epoch for epoch, _ in points], [value for _, value in points]


def is_size(unit: str, values: Iterable[float]) -> bool:
    """Whether values are seen best on a logarithmic axis: all κ, and what spans more than two decades above 0."""
    known = [value for value in values if isfinite(value)]
    positive = [value for value in known if value > 0]
    if not positive or unit == "share" or min(known) < 0:
        return False
    return unit == "κ" or max(positive) > 100 * min(positive)


def is_share(key: str, values: Iterable[float]) -> bool:
    """Whether an axis shows 0 to 1: values of shares and of the user's own accuracies, unless they are percentages."""
    is_one = name_of(key).unit == "share" or (name_of(key).group == OWN_GROUP and is_own_score(key))
    return is_one and all(0 <= value <= 1 for value in values if isfinite(value))


def _known_keys() -> Iterator[str]:
    for described in (keys.FLATNESS_KEYS, keys.BOUND_KEYS, (keys.ALARM,), keys.MASKING_KEYS, keys.TRAJECTORY_KEYS):
        yield from described


def _over_epochs(runs: Sequence[Run], key: str) -> Figure:
    name = name_of(key)
    curves = [(place, drawn) for place, run in enumerate(runs) if (drawn := curve(run.epochs, key))[0]]
    return Figure(
        name.group,
        name.title,
        curves,
        key=key,
        says=name.says,
        unit=name.unit,
        log=is_size(name.unit, _values(curves)),
        share=is_share(key, _values(curves)),
        minor=name.minor,
    )


def _along_paths(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Figure]:
    """κ where the paths start, where it is largest and where they end, in the last epoch that measured it."""
    start, end = f"{keys.TRAJECTORY_GROUP}/", "clean_flatness"
    for key in names:
        if key.startswith(start) and key.endswith(end):
            path = key.removeprefix(start).removesuffix(end)
            points = [f"{start}{path}{point}_flatness" for point in _ALONG]
            curves = [(place, drawn) for place, run in enumerate(runs) if (drawn := _last_of(run, points))]
            yield Figure(
                keys.TRAJECTORY_GROUP,
                f"κ along the path of {path.strip('_').replace('_', ' ') or 'the attack'}",
                curves,
                says="mean κ at the clean inputs, at its peak and at the last point; last measurement of each run",
                xlabel="",
                unit="κ",
                log=is_size("κ", _values(curves)),
                ticks=_ALONG,
            )


def _last_of(run: Run, names: Sequence[str]) -> Curve | None:
    row = next((row for row in reversed(run.epochs) if any(name in row for name in names)), None)
    if row is None:
        return None
    points = [(float(place), row[name]) for place, name in enumerate(names) if name in row]
    return [place for place, _ in points], [value for _, value in points]


def _over_scales(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Figure]:
    """Quantities over the scale of the head, as the last measurement of each run has them."""
    if not any(key.startswith(f"{keys.SCALING_GROUP}/") for key in names):
        return
    rows = {place: scaled for place, run in enumerate(runs) if (scaled := _last_scaling(run.epochs))}
    for quantity, says in keys.SCALING_QUANTITIES.items():
        curves = [
            (place, _over_scale(scaled, quantity))
            for place, scaled in rows.items()
            if any(quantity in row for row in scaled)
        ]
        if curves:
            key = keys.scaling_key(quantity, 1.0)
            unit = name_of(key).unit
            yield Figure(
                keys.SCALING_GROUP,
                f"{quantity.replace('_', ' ')} over the scale of the head",
                curves,
                says=says,
                xlabel="scale of the head",
                unit=unit,
                log=is_size(unit, _values(curves)),
                share=is_share(key, _values(curves)),
                xlog=True,
            )


def _over_scale(rows: Sequence[ScalingRow], quantity: str) -> Curve:
    there = [row for row in rows if quantity in row]
    return [row["scale"] for row in there], [row[quantity] for row in there]


def _last_scaling(epochs: Sequence[Row]) -> list[ScalingRow]:
    return next((rows for row in reversed(epochs) if (rows := scaling_rows(row))), [])


def _values(curves: Iterable[tuple[int, Curve]]) -> Iterator[float]:
    return (value for _, (_, values) in curves for value in values)
