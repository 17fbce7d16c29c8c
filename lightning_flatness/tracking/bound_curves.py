"""What is guaranteed or estimated, beside what attacks leave of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import ACCURACIES, by_radius, kinds_of_bounds, logged, radius_in
from lightning_flatness.tracking._panels import Panel, figure_of, over_epochs
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AccuracyCurve = tuple[list[float], list[float]]
"""Radii, and the accuracy at each of them."""

_NORMS = ("linf", "l2")
_ATTACKED = keys.attack_key("{norm}_{radius}", keys.ROBUST_ACCURACY)
_CLEAN = keys.attack_key("{norm}_{radius}", keys.CLEAN_ACCURACY)
_FEATURE_RADII = {keys.DECISION_RADIUS_MEDIAN: "of features, median"}
_RADII = {
    keys.CERTIFIED_RADIUS_MEAN: "of inputs, certified, mean",
    keys.CERTIFIED_RADIUS_MEDIAN: "of inputs, certified, median",
    keys.ESTIMATED_RADIUS_MEAN: "of inputs, estimated, mean",
    keys.ESTIMATED_RADIUS_MEDIAN: "of inputs, estimated, median",
}
_LIPSCHITZ = {keys.LIPSCHITZ_CERTIFIED: "certified (from above)", keys.LIPSCHITZ_ESTIMATED: "estimated (from below)"}
_TIGHTNESS = {keys.TIGHTNESS: "bound / rise under attack, median"}
_VIOLATIONS = {keys.VIOLATION_RATE: "bound violated", keys.TAYLOR_VIOLATION_RATE: "Taylor bound violated"}
_CONSTANTS = {"certified": "certificate", "estimated": "estimate"}


def accuracies_over_epsilon(row: Mapping[str, Any], norm: str | None = None) -> dict[str, AccuracyCurve]:
    """Read the accuracies that a row holds for several radii out of its keys.

    Args:
        row: what was logged in one epoch, under plain keys.
        norm: ``"linf"`` or ``"l2"``: of the attacks, for their accuracies; None for both.

    Returns:
        ``certified``, ``estimated`` and ``attacks, {norm}``, as far as there are such keys → radii in increasing order,
        and the accuracies at them.

    Example:
        >>> row = {"bound/certified_accuracy_8_255": 0.5, "attack/l2_0_5_robust_accuracy": 0.7}
        >>> accuracies_over_epsilon(row)
        {'certified': ([0.03137254901960784], [0.5]), 'attacks, l2': ([0.5], [0.7])}
    """
    norms = _NORMS if norm is None else (norm,)
    forms = {**ACCURACIES, **{f"attacks, {one}": _ATTACKED.replace("{norm}", one) for one in norms}}
    curves: dict[str, AccuracyCurve] = {}
    for name, form in forms.items():
        points = sorted((radius, row[key]) for key in row if (radius := radius_in(key, form)) is not None)
        if points:
            curves[name] = [radius for radius, _ in points], [accuracy for _, accuracy in points]
    return curves


def accuracy_figure(row: Mapping[str, Any]) -> "Figure":
    """Draw the accuracy that is guaranteed or estimated, and the one that attacks leave, over ε.

    The truth lies between a certified accuracy and one under attack. Samples may not be the same: estimates are those
    of fewer. Curves begin at ε = 0 where the clean accuracy of their own samples is known.

    Args:
        row: what was logged in one epoch, under plain keys, as a row of a monitor's ``history()``.

    Returns:
        A matplotlib figure of one panel.
    """
    return figure_of([_accuracy_panel(row)])


def bound_panels(epochs: Sequence[Row]) -> list[Panel]:
    """Accuracies over ε and over the epochs, radii, and the bound on the loss with its checks.

    Args:
        epochs: one row per epoch.

    Returns:
        Panels, without curves where nothing was logged.
    """
    measured = [row for row in epochs if any(name.startswith(f"{keys.BOUND_GROUP}/") for name in row)]
    if not measured:
        return []
    accuracies = {
        name: text for kind, form in ACCURACIES.items() for name, text in by_radius(logged(epochs), form, kind).items()
    }
    kinds = kinds_of_bounds(epochs)
    loss = {keys.BOUND_LOSS_INCREASE: f"mean bound on the rise, {' and '.join(kinds)}"}
    constant = " or ".join(_CONSTANTS[kind] for kind in kinds)
    violations = {**_VIOLATIONS, keys.LIPSCHITZ_VIOLATION_RATE: f"features moved farther than the {constant}"}
    return [
        _accuracy_panel(measured[-1]),
        Panel("Accuracy within radius ε", over_epochs(epochs, accuracies), scale="rate"),
        Panel("Radii in which predictions stand", over_epochs(epochs, _RADII), "units of inputs", "size"),
        Panel("Distance to the decision boundary", over_epochs(epochs, _FEATURE_RADII), "units of features", "size"),
        Panel("Lipschitz constant of the features", over_epochs(epochs, _LIPSCHITZ), scale="size"),
        Panel("Bound on the loss within ε", over_epochs(epochs, loss), "nats", "size"),
        Panel("Loss bound where attacks led: 1 is tight", over_epochs(epochs, _TIGHTNESS), "ratio", "size"),
        Panel("Violations of bounds", over_epochs(epochs, violations), "share of attacked samples", "rate"),
    ]


def _accuracy_panel(row: Mapping[str, Any]) -> Panel:
    epoch = f", epoch {int(row['epoch'])}" if "epoch" in row else ""
    return Panel(f"Accuracy over ε{epoch}", _from_zero(row), scale="rate", xlabel="ε")


def _from_zero(row: Mapping[str, Any]) -> dict[str, AccuracyCurve]:
    clean = _clean_accuracies(row)
    return {
        name: ([0.0, *radii], [clean[name], *accuracies]) if name in clean else (radii, accuracies)
        for name, (radii, accuracies) in accuracies_over_epsilon(row).items()
    }


def _clean_accuracies(row: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy without perturbation, by the name of the curve that it belongs to."""
    found: dict[str, float] = {}
    for key in row:
        norm = next((one for one in _NORMS if radius_in(key, _CLEAN.replace("{norm}", one)) is not None), None)
        if norm is None:
            continue
        found.setdefault(f"attacks, {norm}", row[key])
        attacked = row.get(f"{key.removesuffix(keys.CLEAN_ACCURACY)}{keys.SAMPLES}")
        # both measure the first samples: as many are the same ones
        if attacked is not None and attacked == row.get(keys.BOUND_SAMPLES):
            found |= dict.fromkeys(ACCURACIES, row[key])
    return found
