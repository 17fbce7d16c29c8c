"""What is guaranteed or estimated, beside what attacks leave of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._panels import curve, draw, draw_rates, has
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

AccuracyCurve = tuple[list[float], list[float]]
"""Radii, and the accuracy at each of them."""

_KINDS = {"certified": keys.CERTIFIED_ACCURACY, "estimated": keys.ESTIMATED_ACCURACY}
_ATTACKED = keys.attack_key("{norm}_{radius}", keys.ROBUST_ACCURACY)
_RADII = {
    keys.DECISION_RADIUS_MEDIAN: "of features, median",
    keys.CERTIFIED_RADIUS_MEAN: "of inputs, certified, mean",
    keys.CERTIFIED_RADIUS_MEDIAN: "of inputs, certified, median",
    keys.ESTIMATED_RADIUS_MEAN: "of inputs, estimated, mean",
    keys.ESTIMATED_RADIUS_MEDIAN: "of inputs, estimated, median",
    keys.LIPSCHITZ_CERTIFIED: "Lipschitz constant, certified",
    keys.LIPSCHITZ_ESTIMATED: "Lipschitz constant, estimated",
}
_LOSS = {keys.BOUND_LOSS_INCREASE: "bound on the rise, nats", keys.TIGHTNESS: "bound / rise under attack"}
_VIOLATIONS = {keys.VIOLATION_RATE: "bound violated", keys.TAYLOR_VIOLATION_RATE: "Taylor bound violated"}


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
    norms = ("linf", "l2") if norm is None else (norm,)
    patterns = {**_KINDS, **{f"attacks, {one}": _ATTACKED.replace("{norm}", one) for one in norms}}
    curves: dict[str, AccuracyCurve] = {}
    for name, pattern in patterns.items():
        points = sorted((radius, row[key]) for key in row if (radius := _radius_in(key, pattern)) is not None)
        if points:
            curves[name] = [radius for radius, _ in points], [accuracy for _, accuracy in points]
    return curves


def _radius_in(key: str, pattern: str) -> float | None:
    """Radius that a key names in the place of ``{radius}``; None where it is not of that form."""
    start, end = pattern.split("{radius}")
    if not (key.startswith(start) and key.endswith(end)):
        return None
    return keys.label_radius(key[len(start) : len(key) - len(end)])


def accuracy_figure(row: Mapping[str, Any]) -> "Figure":
    """Draw the accuracy that is guaranteed or estimated, and the one that attacks leave, over ε.

    The truth lies between a certified accuracy and one under attack. Samples may not be the same: estimates are those
    of fewer.

    Args:
        row: what was logged in one epoch, under plain keys, as a row of a monitor's ``history()``.

    Returns:
        A matplotlib figure of one panel.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw_accuracies(figure.subplots(), row)
    return figure


def draw_bounds(figure: "SubFigure", epochs: Sequence[Row]) -> None:
    """Fill a part of a figure with accuracies over ε, radii, and the bound on the loss with its checks.

    Args:
        figure: to draw on.
        epochs: one row per epoch.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an optional dependency

    over_epsilon, over_epochs, radii, loss = figure.subplots(1, 4)
    last = [row for row in epochs if any(name.startswith(f"{keys.BOUND_GROUP}/") for name in row)][-1]
    _draw_accuracies(over_epsilon, last)
    draw_rates(over_epochs, epochs, _accuracy_labels(epochs), "Accuracy within radius ε")
    draw(radii, epochs, _RADII, "Radii in which predictions stand")
    draw(loss, epochs, _LOSS, "Bound on the loss within ε")
    violations = {name: label for name, label in _VIOLATIONS.items() if has(epochs, name)}
    if violations:
        rates = loss.twinx()
        for index, (name, label) in enumerate(violations.items()):
            rates.plot(*curve(epochs, name), color=f"C{index + 3}", linestyle="--", label=label)
        rates.set(ylabel="violations (dashed)", ylim=(-0.02, 1.02))
        rates.legend(loc="center right", frameon=False)
    for axes in (over_epochs, radii, loss):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _accuracy_labels(epochs: Sequence[Row]) -> dict[str, str]:
    """Label of every guaranteed or estimated accuracy, by its key."""
    names = dict.fromkeys(name for row in epochs for name in row)
    return {
        name: f"{kind}, {radius:.3g}"
        for kind, pattern in _KINDS.items()
        for name in names
        if (radius := _radius_in(name, pattern)) is not None
    }


def _draw_accuracies(axes: "Axes", row: Mapping[str, Any]) -> None:
    for name, (radii, accuracies) in accuracies_over_epsilon(row).items():
        axes.plot(radii, accuracies, label=name, marker=".", linestyle=":" if name == "estimated" else "-")
    epoch = f", epoch {int(row['epoch'])}" if "epoch" in row else ""
    axes.set(title=f"Accuracy over ε{epoch}", xlabel="ε", ylim=(-0.02, 1.02))
    axes.grid(visible=True, alpha=0.25)
    if axes.lines:
        axes.legend(loc="best", frameon=False)
