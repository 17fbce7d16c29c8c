"""Logged keys, and what tables and pictures call them."""

from collections.abc import Iterable, Sequence
from math import inf

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import Row

ACCURACIES = {"certified": keys.CERTIFIED_ACCURACY, "estimated": keys.ESTIMATED_ACCURACY}
"""Kind of a Lipschitz constant → form of the keys of the accuracies that it gives."""
_NORMS = ("linf", "l2")


def logged(epochs: Iterable[Row]) -> list[str]:
    """Every key that was logged, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in epochs for name in row))


def has(epochs: Iterable[Row], name: str) -> bool:
    return any(name in row for row in epochs)


def own_names(epochs: Iterable[Row], word: str) -> dict[str, str]:
    """Names that contain ``word`` and are the user's, none of ours; each is its own label."""
    return {name: name for name in logged(epochs) if word in name.lower() and name.split("/")[0] not in keys.GROUPS}


def robust_accuracies(epochs: Sequence[Row]) -> dict[str, str]:
    """Key → label of every robust accuracy: of threat models by radius, of named attacks, of the worst case."""
    prefix, suffix = f"{keys.ATTACK_GROUP}/", f"_{keys.ROBUST_ACCURACY}"
    found = [name for name in logged(epochs) if name.startswith(prefix) and name.endswith(suffix)]
    labels = {name: name.removeprefix(prefix).removesuffix(suffix) for name in found}
    found.sort(key=lambda name: (threat_order(labels[name]), labels[name] == keys.WORST_CASE))
    return {name: _attack_text(labels[name]) for name in found}


def threat_order(label: str) -> tuple[int, float]:
    """Place of an attack among others: by norm, then by radius; the named ones last."""
    norm, _, rest = label.partition("_")
    radius = keys.label_radius(rest)
    return (_NORMS.index(norm), radius) if norm in _NORMS and radius is not None else (len(_NORMS), inf)


def _attack_text(label: str) -> str:
    norm, _, rest = label.partition("_")
    is_threat = threat_order(label)[0] < len(_NORMS)
    return f"{norm} {keys.radius_text(rest)}" if is_threat else label.replace("_", " ")


def kinds_of_bounds(epochs: Iterable[Row]) -> list[str]:
    """Which of ``certified`` and ``estimated`` the logged bounds are."""
    names = [name for name in logged(epochs) if name.startswith(f"{keys.BOUND_GROUP}/")]
    return [kind for kind in ACCURACIES if any(kind in name for name in names)]


def by_radius(names: Iterable[str], form: str, start: str) -> dict[str, str]:
    """Key → ``start`` and the radius as the key writes it, in increasing order, of the keys of that form."""
    found = sorted((radius, name) for name in names if (radius := radius_in(name, form)) is not None)
    return {name: f"{start} {keys.radius_text(_between(name, form))}" for _, name in found}


def radius_in(key: str, form: str) -> float | None:
    """Radius that a key names in the place of ``{radius}``; None where it is not of that form."""
    start, end = form.split("{radius}")
    return keys.label_radius(_between(key, form)) if key.startswith(start) and key.endswith(end) else None


def _between(key: str, form: str) -> str:
    start, end = form.split("{radius}")
    return key.removeprefix(start).removesuffix(end)
