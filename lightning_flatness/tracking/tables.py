"""The curves of one run, as tables on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._choice import evenly_chosen
from lightning_flatness.tracking._labels import (
    ACCURACIES,
    by_radius,
    has,
    kinds_of_bounds,
    logged,
    own_names,
    robust_accuracies,
)
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from rich.table import Column, Table

_FLATNESS = {
    keys.RELATIVE_FLATNESS: "κ mean",
    keys.MEDIAN: "κ median",
    keys.CORRECT: "κ right",
    keys.WRONG: "κ wrong",
    keys.CONFIDENCE_FACTOR: "tr H_z",
    keys.FEATURE_NORM: "‖φ‖",
    keys.WEIGHT_NORM: "‖W‖",
}
_BOUNDS = {
    keys.CERTIFIED_RADIUS_MEDIAN: "cert. median radius",
    keys.ESTIMATED_RADIUS_MEDIAN: "est. median radius",
    keys.BOUND_LOSS_INCREASE: "loss bound (nats)",
    keys.TIGHTNESS: "bound /rise",
    keys.VIOLATION_RATE: "bound violated",
    keys.TAYLOR_VIOLATION_RATE: "Taylor violated",
}
_KINDS = {"certified": "certified", "estimated": "estimated (no guarantee)"}
_GAP = 2
"""Between two columns, and at the two edges together."""
_SHORT = {"certified": "cert.", "estimated": "est."}


def curves_table(epochs: Sequence[Row], most_rows: int = 20) -> "Table":
    """Lay out loss, accuracy and relative flatness; of a long run, evenly spaced epochs with the first and the last.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.
        most_rows: most rows of the table, at least 2.

    Returns:
        A rich table of the epochs in which flatness was measured; if it never was, of all that have a loss or accuracy.
    """
    measured = [row for row in epochs if keys.RELATIVE_FLATNESS in row]
    title = "Relative flatness κ (small is flat)" if measured else "Loss and accuracy"
    names = [name for word in ("loss", "acc") for name in own_names(measured or epochs, word)]
    columns = {name: name.replace("_", " ").replace("accuracy", "acc") for name in names}
    return _table(title, measured or epochs, columns | _FLATNESS, most_rows)


def attacks_table(epochs: Sequence[Row], most_rows: int = 20) -> "Table":
    """Lay out the robust accuracy of every attack, and the alarm of gradient masking.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.
        most_rows: most rows of the table, at least 2.

    Returns:
        A rich table, without rows where nothing was attacked.
    """
    columns = robust_accuracies(epochs)
    measured = [row for row in epochs if any(name in row for name in columns)]
    columns |= {keys.ALARM: "masking alarm"}
    return _table("Robust accuracy: still correct under attack", measured, _one_word_a_line(columns), most_rows)


def bounds_table(epochs: Sequence[Row], most_rows: int = 20) -> "Table":
    """Lay out the accuracies within each radius, the median radius, and the bound on the loss with its checks.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.
        most_rows: most rows of the table, at least 2.

    Returns:
        A rich table whose title says whether the values are certified or estimated; without rows where there are none.
    """
    title = " and ".join(_KINDS[kind] for kind in kinds_of_bounds(epochs))
    columns: dict[str, str] = {}
    for kind, form in ACCURACIES.items():
        columns |= by_radius(logged(epochs), form, f"{_SHORT[kind]} acc")
    columns = _one_word_a_line(columns | _BOUNDS)
    return _table(f"Robustness within a radius: {title}", epochs, columns, most_rows)


def fitting(table: "Table", width: int) -> list["Table"]:
    """Lay out the columns of a table below one another where they do not fit beside one another.

    Args:
        table: whose columns have widths; its first column is repeated.
        width: of the terminal, in characters.

    Returns:
        The table itself if it fits, else tables with some of its columns each, the title above and the caption below.
    """
    first, *columns = table.columns
    parts: list[list[Column]] = []
    for column in columns:
        if not parts or sum(_GAP + (one.width or 0) for one in (first, *parts[-1], column)) > width:
            parts.append([])
        parts[-1].append(column)
    if len(parts) < 2:
        return [table]
    tables = [_empty_table() for _ in parts]
    tables[0].title, tables[-1].caption = table.title, table.caption
    for one, part in zip(tables, parts, strict=True):
        shown = [first, *part]
        for column in shown:
            one.add_column(column.header, justify=column.justify, width=column.width, overflow="fold")
        for row in zip(*(column.cells for column in shown), strict=True):
            one.add_row(*row)
    return tables


def _one_word_a_line(columns: dict[str, str]) -> dict[str, str]:
    return {name: header.replace(" ", "\n") for name, header in columns.items()}


def _table(title: str, epochs: Sequence[Row], columns: dict[str, str], most_rows: int) -> "Table":
    """Lay out the columns that were logged, in the epochs in which one of them was."""
    columns = {name: header for name, header in columns.items() if has(epochs, name)}
    measured = [row for row in epochs if any(name in row for name in columns)]
    caption = None
    if len(measured) > most_rows:
        caption = f"{most_rows} of {len(measured)} epochs; all of them are in metrics.csv"
    # a title is folded to the width of its table
    width = max(len(title), len(caption or "")) if columns else None
    table = _empty_table()
    table.title, table.caption, table.min_width = title, caption, width
    rows = [
        [str(int(row["epoch"])), *(f"{row[name]:.3g}" if name in row else "" for name in columns)]
        for row in evenly_chosen(measured, most_rows)
    ]
    for index, header in enumerate(("epoch", *columns.values())):
        least = max(map(len, [*header.split(), *(row[index] for row in rows)]))
        table.add_column(header, justify="right", width=least, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _empty_table() -> "Table":
    from rich.box import SIMPLE  # noqa: PLC0415 - slow to import
    from rich.table import Table  # noqa: PLC0415 - slow to import

    return Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
