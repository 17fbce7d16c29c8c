"""Which keys the panels of a dashboard show."""

from collections.abc import Iterator
from typing import Any

from lightning_flatness.tracking import keys

LABELS = ("linf_8_255", "pgd")
SCALES = (0.25, 100.0)


def documented() -> dict[str, list[str]]:
    """Documented key → it as it is logged, with labels, radii and scales filled in."""
    exact = [*keys.FLATNESS_KEYS, *keys.MASKING_KEYS, keys.ALARM, *keys.TRAJECTORY_KEYS, *keys.SCALING_COUNTS]
    attacks = {
        keys.attack_key("{label}", name): [keys.attack_key(label, name) for label in LABELS]
        for name in keys.ATTACK_QUANTITIES
    }
    scaling = {
        f"scaling/{name}_{{scale}}": [keys.scaling_key(name, scale) for scale in SCALES]
        for name in keys.SCALING_QUANTITIES
    }
    bounds = {key: [key.format(radius=radius) for radius in ("8_255", "0_5")] for key in keys.BOUND_KEYS}
    return {key: [key] for key in exact} | attacks | scaling | bounds


def panels(tree: Any) -> Iterator[dict[str, Any]]:
    """Every panel in a specification."""
    if isinstance(tree, dict):
        if "viewType" in tree:
            yield tree
        else:
            for branch in tree.values():
                yield from panels(branch)
    elif isinstance(tree, list):
        for branch in tree:
            yield from panels(branch)


def exact_keys(specification: dict[str, Any]) -> set[str]:
    """Keys of the curves."""
    return {key for panel in panels(specification) for key in panel.get("config", {}).get("metrics", [])}


def regexes(specification: dict[str, Any]) -> set[str]:
    """Expressions for the keys of curves."""
    found = {panel["config"]["metricRegex"] for panel in panels(specification) if "metricRegex" in panel["config"]}
    assert all(panel["config"]["useMetricRegex"] for panel in panels(specification) if "metricRegex" in panel["config"])
    return found


def summary_keys(specification: dict[str, Any]) -> set[str]:
    """Entries of the summary in scatter plots, parallel coordinates and columns of the table of runs."""
    return {text.removeprefix("summary:") for text in _texts(specification) if text.startswith("summary:")}


def config_names(specification: dict[str, Any]) -> list[str]:
    """Names in the configuration from which the parallel coordinates start."""
    return [text for text in _texts(specification) if text.startswith("config:")]


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        yield from _texts(list(tree.values()))
        yield from tree
    elif isinstance(tree, list):
        for branch in tree:
            yield from _texts(branch)
