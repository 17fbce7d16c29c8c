"""Logged keys, and what tables and pictures call them."""

from collections.abc import Iterable, Sequence

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import Row

ACCURACIES = {"certified": keys.CERTIFIED_ACCURACY, "estimated": keys.ESTIMATED_ACCURACY}
"""Kind of a Lipschitz constant → form of the keys of the accuracies that it gives."""
_ATTACKED = {norm: keys.attack_key(f"{norm}_{{radius}}", keys.ROBUST_ACCURACY) for norm in ("linf", "l2")}


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
    names = logged(epochs)
    labels = {name: text for norm, form in _ATTACKED.items() for name, text in by_radius(names, form, norm).items()}
    prefix, suffix = f"{keys.ATTACK_GROUP}/", f"_{keys.ROBUST_ACCURACY}"
    others = {
        name: name.removeprefix(prefix).removesuffix(suffix).replace("_", " ")
        for name in names
        if name.startswith(prefix) and name.endswith(suffix) and name not in labels
    }
    worst = keys.attack_key(keys.WORST_CASE, keys.ROBUST_ACCURACY)
    return labels | dict(sorted(others.items(), key=lambda item: item[0] == worst))


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
