"""What the dashboard shows of each run: which keys in which charts, as plain data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_flatness.tracking import keys


@dataclass(frozen=True)
class Chart:
    """Curves of exact keys, or of all that a regular expression finds.

    Expressions do without looking around, which not every engine can.
    """

    title: str
    keys: tuple[str, ...] = ()
    regex: str | None = None
    scale: Literal["linear", "size", "rate"] = "linear"


@dataclass(frozen=True)
class Group:
    """Charts under one heading.

    Args:
        name: heading.
        about: what to look for.
        meanings: key → what it says.
        charts: in order.
        is_open: not folded at first.
    """

    name: str
    about: str
    meanings: Mapping[str, str]
    charts: tuple[Chart, ...]
    is_open: bool = False


_NUMBER = "[0-9_]+"
_INTERVAL = "_(low|high)"
_ALARMS = {
    keys.ALARM: f"{keys.ALARM_MEANING}; the reasons are in the summary of the run",
    keys.VIOLATION_RATE: keys.BOUND_KEYS[keys.VIOLATION_RATE],
    keys.LIPSCHITZ_VIOLATION_RATE: keys.BOUND_KEYS[keys.LIPSCHITZ_VIOLATION_RATE],
}
_IN_OTHER_UNITS = {
    keys.CONFIDENCE_FACTOR, keys.GEOMETRY_FACTOR, keys.FEATURE_NORM, keys.WEIGHT_NORM,
}  # fmt: skip
"""Keys of the flatness that are not κ, which spans orders of magnitude."""


def _title(name: str) -> str:
    words = name.rpartition("/")[2].replace("_", " ")
    return words[:1].upper() + words[1:]


def _one_each(names: Iterable[str], scale: Literal["linear", "size", "rate"] = "linear") -> list[Chart]:
    return [Chart(_title(name), (name,), scale=scale) for name in names]


def _alarms() -> Group:
    groups = "|".join(group for group in keys.GROUPS if group != keys.MASKING_GROUP)
    return Group(
        "Alarms",
        "All of these are 0, or the numbers below are not what they seem; only an estimated Lipschitz constant is "
        "exceeded in good runs too.",
        _ALARMS,
        (
            Chart("Masking alarm: 1 is on", (keys.ALARM,), scale="rate"),
            Chart("Bound on the loss violated", (keys.VIOLATION_RATE,), scale="rate"),
            Chart("Lipschitz constant exceeded", (keys.LIPSCHITZ_VIOLATION_RATE,), scale="rate"),
            Chart("Attacks: results that were no valid inputs", regex=f"^{keys.ATTACK_GROUP}/.+_{keys.REJECTED}$"),
            Chart("Samples with NaN or infinity", regex=f"^({groups})/(.+_)?{keys.NONFINITE_SAMPLES}$"),
        ),
        is_open=True,
    )


def _flatness() -> Group:
    names = [name for name in keys.FLATNESS_KEYS if name != keys.NONFINITE]
    charts = [chart for name in names for chart in _one_each([name], "linear" if name in _IN_OTHER_UNITS else "size")]
    classes = f"^{keys.RELATIVE_FLATNESS}_class_[0-9]+$"
    return Group(
        "Flatness",
        "When κ falls with the confidence factor, the flatness is only confidence.",
        keys.FLATNESS_KEYS,
        (*charts, Chart("Relative flatness of each class", regex=classes, scale="size")),
        is_open=True,
    )


def _bounds() -> Group:
    pairs = {
        "Radius, mean": (keys.CERTIFIED_RADIUS_MEAN, keys.ESTIMATED_RADIUS_MEAN),
        "Radius, median": (keys.CERTIFIED_RADIUS_MEDIAN, keys.ESTIMATED_RADIUS_MEDIAN),
        "Radius, 10th percentile": (keys.CERTIFIED_RADIUS_P10, keys.ESTIMATED_RADIUS_P10),
        "Loss stays below log 2": (keys.CERTIFIED_LOSS_BELOW_LOG2, keys.ESTIMATED_LOSS_BELOW_LOG2),
        "Lipschitz constant of the features": (keys.LIPSCHITZ_CERTIFIED, keys.LIPSCHITZ_ESTIMATED),
    }
    accuracy = f"^{keys.BOUND_GROUP}/(certified|estimated)_accuracy_{_NUMBER}"
    alone = (keys.DECISION_RADIUS_MEDIAN, keys.BOUND_LOSS_INCREASE, keys.TIGHTNESS, keys.BOUND_SAMPLES)
    return Group(
        "Bounds",
        "Certified values are guaranteed, estimated ones are not.",
        keys.BOUND_KEYS,
        (
            Chart("Accuracy within a radius", regex=f"{accuracy}$", scale="rate"),
            Chart("Its 95 % interval", regex=f"{accuracy}{_INTERVAL}$", scale="rate"),
            *(Chart(title, names) for title, names in pairs.items()),
            *_one_each([keys.TAYLOR_VIOLATION_RATE], "rate"),
            *_one_each(alone, "size"),
        ),
    )


def _attacks() -> Group:
    start = f"^{keys.ATTACK_GROUP}/.+_"
    quantities = (keys.CLEAN_ACCURACY, keys.LOSS_INCREASE, keys.STEPS_TO_FOOL, keys.STEPS_TO_FOOL_MEAN)
    shares = f"({keys.ROBUST_ACCURACY}|{keys.SUCCESS_RATE})"
    return Group(
        "Attacks",
        "Robust accuracy is that of all samples, success that of the initially correct ones.",
        keys.ATTACK_KEYS,
        (
            Chart("Robust accuracy", regex=f"{start}{keys.ROBUST_ACCURACY}$", scale="rate"),
            Chart("Success rate, of flipped labels and of risen losses", regex=f"{start}{keys.SUCCESS_RATE}$"),
            *(Chart(_title(name), regex=f"{start}{name}$") for name in quantities),
            Chart("95 % intervals", regex=f"{start}{shares}{_INTERVAL}$", scale="rate"),
            Chart("Of each class", regex=f"{start}{shares}_class_[0-9]+$", scale="rate"),
            *(Chart(_title(name), regex=f"{start}{name}$") for name in (keys.SAMPLES, keys.SECONDS)),
        ),
    )


def _masking() -> Group:
    return Group(
        "Masking",
        "Without masked gradients, correlation and alignment are near 1, rates and gaps near 0.",
        keys.MASKING_KEYS,
        tuple(_one_each(keys.MASKING_KEYS)),
    )


def _trajectory() -> Group:
    names = [key.rpartition("/")[2] for key in keys.TRAJECTORY_KEYS if key != keys.TRAJECTORY_NONFINITE]
    return Group(
        "Trajectory",
        "Along the path of an attack; those of other paths have the name of the path in their keys.",
        keys.TRAJECTORY_KEYS,
        tuple(
            Chart(
                _title(name),
                regex=f"^{keys.TRAJECTORY_GROUP}/(.+_)?{name}$",
                scale="size" if name.endswith("flatness") else "linear",
            )
            for name in names
        ),
    )


def _scaling() -> Group:
    quantities = tuple(
        Chart(
            _title(name),
            regex=f"^{keys.SCALING_GROUP}/{name}_{_NUMBER}$",
            scale="size" if "flatness" in name else "linear",
        )
        for name in keys.SCALING_QUANTITIES
    )
    counts = [key for key in keys.SCALING_COUNTS if key != keys.SCALING_NONFINITE]
    return Group(
        "Scaling",
        "Weight and bias of the head times a number: no decision changes, only confidence does.",
        {**keys.SCALING_KEYS, **keys.SCALING_COUNTS},
        (*quantities, *_one_each(counts)),
    )


ALARMS = _alarms()
"""What stands on top."""
GROUPS = (_flatness(), _bounds(), _attacks(), _masking(), _trajectory(), _scaling())
"""What follows the comparison of the runs."""
