"""The curves of one run, as a picture and as a table on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._panels import curve, draw, draw_rates, has
from lightning_flatness.tracking.bound_curves import draw_bounds
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_COLUMNS = {
    keys.RELATIVE_FLATNESS: "κ mean",
    keys.MEDIAN: "κ median",
    keys.CORRECT: "κ right",
    keys.WRONG: "κ wrong",
    keys.CONFIDENCE_FACTOR: "tr H_z",
    keys.FEATURE_NORM: "‖φ‖",
    keys.WEIGHT_NORM: "‖W‖",
}
_FLATNESS_CURVES = {
    keys.RELATIVE_FLATNESS: "mean",
    keys.P90: "90th percentile",
    keys.MEDIAN: "median",
    keys.GEOMETRIC_MEAN: "geometric mean",
}
_ANSWER_CURVES = {keys.CORRECT: "correctly classified", keys.WRONG: "wrongly classified"}
_FACTOR_CURVES = {
    keys.CONFIDENCE_FACTOR: "confidence factor tr H_z",
    keys.FEATURE_NORM: "feature norm ‖φ‖",
    keys.WEIGHT_NORM: "weight norm ‖W‖",
}


def curves_figure(epochs: Sequence[Row]) -> "Figure":
    """Draw relative flatness, its factors, loss and accuracy over the epochs, and what attacks and bounds say.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.

    Returns:
        A matplotlib figure of four panels, two more of attacks and four of bounds where there are any.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - likewise

    robust = _robust_accuracies(epochs)
    bounds = any(name.startswith(f"{keys.BOUND_GROUP}/") for row in epochs for name in row)
    figure = Figure(figsize=(18 if bounds else 16 if robust else 11, 10.5 if bounds else 7), layout="constrained")
    heights = [2, 1] if bounds else [1]
    above, *below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    (flatness, answers, *attacks), (factors, training, *masking) = above.subplots(2, 3 if robust else 2, sharex=True)
    draw(flatness, epochs, _FLATNESS_CURVES, "Relative flatness κ (small is flat)")
    draw(answers, epochs, _ANSWER_CURVES, "κ by answer")
    draw(factors, epochs, _FACTOR_CURVES, "What κ is made of", "center right")
    draw(training, epochs, {name: name for name in _names(epochs, "loss")}, "Loss and accuracy")
    training.set_ylabel("loss")
    accuracies = _names(epochs, "acc")
    if accuracies:
        right = training.twinx()
        for index, name in enumerate(accuracies):
            right.plot(*curve(epochs, name), color=f"C{index + 3}", linestyle="--", label=name)
        right.set_ylabel("accuracy (dashed)")
        handles, labels = (
            left + added
            for left, added in zip(training.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
        )
        training.legend(handles, labels, loc="center right", frameon=False)
    for axes in attacks:
        draw_rates(axes, epochs, robust, "Robust accuracy: still correct under attack")
    for axes in masking:
        draw_rates(axes, epochs, _masking_rates(epochs), "Signs of gradient masking: 0 is good")
    for axes in (factors, training, *masking):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for part in below:
        draw_bounds(part, epochs)
    return figure


def curves_table(epochs: Sequence[Row], most_rows: int = 20) -> "Table":
    """Lay the curves out as a table; of a long run, evenly spaced epochs with the first and the last.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.
        most_rows: most rows of the table, at least 2.

    Returns:
        A rich table.
    """
    measured = [row for row in epochs if keys.RELATIVE_FLATNESS in row]
    columns = {
        name: name.replace("_", " ").replace("accuracy", "acc")
        for word in ("loss", "acc")
        for name in _names(measured, word)
    }
    columns |= {name: header for name, header in _COLUMNS.items() if has(measured, name)}
    return _table("Relative flatness κ (small is flat)", measured, columns, most_rows)


def attacks_table(epochs: Sequence[Row], most_rows: int = 20) -> "Table":
    """Lay out the robust accuracy of every attack, and the alarm of gradient masking.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.
        most_rows: most rows of the table, at least 2.

    Returns:
        A rich table, without rows where nothing was attacked.
    """
    columns = _robust_accuracies(epochs)
    measured = [row for row in epochs if any(name in row for name in columns)]
    columns |= {keys.ALARM: "masking alarm"} if has(measured, keys.ALARM) else {}
    return _table("Robust accuracy: still correct under attack", measured, columns, most_rows)


def _table(title: str, measured: Sequence[Row], columns: dict[str, str], most_rows: int) -> "Table":
    from rich.box import SIMPLE  # noqa: PLC0415 - an optional dependency
    from rich.table import Table  # noqa: PLC0415 - an optional dependency

    caption = None
    if len(measured) > most_rows:
        caption = f"{most_rows} of {len(measured)} epochs; all of them are in metrics.csv"
        last = len(measured) - 1
        measured = [measured[round(index * last / (most_rows - 1))] for index in range(most_rows)]
    table = Table(title=title, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    rows = [
        [str(int(row["epoch"])), *(f"{row[name]:.3g}" if name in row else "" for name in columns)] for row in measured
    ]
    for index, header in enumerate(("epoch", *columns.values())):
        table.add_column(header, justify="right", min_width=max(len(row[index]) for row in rows) if rows else None)
    for row in rows:
        table.add_row(*row)
    return table


def _names(epochs: Sequence[Row], word: str) -> list[str]:
    """Logged names that contain ``word``, in the order of their first appearance; none of ours."""
    names = dict.fromkeys(name for row in epochs for name in row)
    return [name for name in names if word in name.lower() and name.split("/")[0] not in keys.GROUPS]


def _robust_accuracies(epochs: Sequence[Row]) -> dict[str, str]:
    """Key → label of every attack whose robust accuracy was logged."""
    prefix, suffix = f"{keys.ATTACK_GROUP}/", f"_{keys.ROBUST_ACCURACY}"
    names = dict.fromkeys(name for row in epochs for name in row)
    return {
        name: name.removeprefix(prefix).removesuffix(suffix)
        for name in names
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _masking_rates(epochs: Sequence[Row]) -> dict[str, str]:
    """Signs that are 0 where nothing is masked."""
    return {
        name: name.split("/")[1].replace("_", " ")
        for name in (*keys.MASKING_KEYS, keys.ALARM)
        if has(epochs, name) and name.endswith(("_gap", "gradient_rate", "probabilities", "survival", "alarm"))
    }
