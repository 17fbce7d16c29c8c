"""What a log key is called on the page: section, title, unit, what it says."""

import re
from dataclasses import dataclass

from lightning_flatness.tracking import keys

OWN_GROUP = "own"
"""Section of keys that are not the library's."""
_KEY = re.compile(
    rf"(?P<test>test_)?(?P<group>{'|'.join(keys.GROUPS)})/(?P<name>.+?)(/dataloader_idx_(?P<loader>\d+))?"
)
_DESCRIPTIONS = (
    {keys.ALARM: keys.ALARM_MEANING}
    | keys.FLATNESS_KEYS
    | keys.MASKING_KEYS
    | keys.TRAJECTORY_KEYS
    | keys.BOUND_KEYS
    | keys.SCALING_COUNTS
)
_NORMS = {"linf": "L∞", "l2": "L2"}
_QUANTITIES = sorted(keys.ATTACK_QUANTITIES, key=len, reverse=True)
_RADIUS = r"\d+(_\d+)?"
_KAPPA = {keys.RELATIVE_FLATNESS: "relative flatness κ, mean"} | {
    key: f"κ, {key.split('/')[1].replace('_', ' ')}"
    for key in (keys.GEOMETRIC_MEAN, keys.MEDIAN, keys.LAYERWISE, keys.CORRECT, keys.WRONG)
}
_TITLES = _KAPPA | {
    keys.P90: "κ, 90th percentile",
    keys.P99: "κ, 99th percentile",
    keys.CONFIDENCE_FACTOR: "confidence factor tr H_z",
    keys.GEOMETRY_FACTOR: "geometry factor",
    keys.FEATURE_NORM: "feature norm ‖φ‖",
    keys.WEIGHT_NORM: "weight norm ‖W‖",
    keys.ALARM: "alarm",
}
_UNITS = {
    "κ": r".*flatness|geometric_mean|median|p90|p99|layerwise|correct|wrong|relative_flatness.*",
    "share": r".*(accuracy|rate|below_log2|_gap|underflow|probabilities|survival|calibration_error).*",
    "probability": r"confidence_\d.*",
    "nats": r".*loss.*",
    "samples": r"(.*_)?(samples|nonfinite|rejected)",
    "seconds": r"(.*_)?seconds",
    "gradient steps": r".*steps_to_fool.*",
    "data units": r".*(radius|basin_width).*",
}
_MINOR = re.compile(r".*(_low|_high|(^|_)(samples|seconds|nonfinite|rejected)|_class_\d+|steps_to_fool_mean)")


@dataclass(frozen=True)
class Name:
    """A key as people read it.

    Args:
        group: one of :data:`~lightning_flatness.tracking.keys.GROUPS`, or :data:`OWN_GROUP`.
        title: short.
        unit: of the values, empty where there is none or where it is not known.
        says: one line that explains it; empty for keys that are not the library's.
        minor: shown on demand only.
    """

    group: str
    title: str
    unit: str = ""
    says: str = ""
    minor: bool = False


def name_of(key: str) -> Name:
    """What a key is called.

    Example:
        >>> name_of("attack/linf_8_255_robust_accuracy").title, name_of("test_flatness/median/dataloader_idx_1").title
        ('L∞ 8/255, robust accuracy', 'test: κ, median, dataloader 1')
        >>> name_of("val_loss")
        Name(group='own', title='val_loss', unit='', says='', minor=False)
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return Name(OWN_GROUP, key)
    group, name = match["group"], match["name"]
    start = "test: " if match["test"] else ""
    end = f", dataloader {match['loader']}" if match["loader"] else ""
    minor = bool(_MINOR.fullmatch(name)) or group == keys.SCALING_GROUP
    return Name(group, f"{start}{_title(group, name)}{end}", _unit(name), _says(group, name), minor)


def _title(group: str, name: str) -> str:
    key = f"{group}/{name}"
    if key in _TITLES:
        return _TITLES[key]
    if group == keys.ATTACK_GROUP and (quantity := _quantity(name)):
        return f"{_attack(name.removesuffix(f'_{quantity}'))}, {quantity.replace('_', ' ')}"
    words, radius = _without_radius(name)
    joint = " at scale " if group == keys.SCALING_GROUP else " within "
    return words.replace("_", " ") + (joint + keys.radius_text(radius) if radius else "")


def _attack(label: str) -> str:
    norm, _, radius = label.partition("_")
    if norm in _NORMS and keys.label_radius(radius) is not None:
        return f"{_NORMS[norm]} {keys.radius_text(radius)}"
    return label.replace("_", " ")


def _says(group: str, name: str) -> str:
    if group == keys.ATTACK_GROUP:
        return keys.ATTACK_QUANTITIES.get(_quantity(name), "")
    words, radius = _without_radius(name)
    if group == keys.SCALING_GROUP and radius:
        return keys.SCALING_QUANTITIES.get(words, "")
    return _DESCRIPTIONS.get(f"{group}/{name}", _DESCRIPTIONS.get(f"{group}/{words}_{{radius}}", ""))


def _quantity(name: str) -> str:
    return next((one for one in _QUANTITIES if name.endswith(f"_{one}")), "")


def _without_radius(name: str) -> tuple[str, str]:
    match = re.fullmatch(rf"(?P<words>.*?(accuracy|{'|'.join(keys.SCALING_QUANTITIES)}))_(?P<radius>{_RADIUS})", name)
    return (match["words"], match["radius"]) if match else (name, "")


def _unit(name: str) -> str:
    return next((unit for unit, pattern in _UNITS.items() if re.fullmatch(pattern, name)), "")
