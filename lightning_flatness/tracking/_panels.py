"""The panels that pictures of a run are made of: named curves, with the legend where it hides none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Literal

from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]
"""Positions, and the value at each of them."""

_MARKERS = "os^DvPX*"
_LEGEND_PADDING = 4.5
"""Room for tick labels and axis label between axes and legend, in font sizes of the legend."""


@dataclass(frozen=True)
class Panel:
    """Named curves; what is estimated is dotted."""

    title: str
    curves: Mapping[str, Curve]
    ylabel: str = ""
    scale: Literal["linear", "size", "rate"] = "linear"
    xlabel: str = "epoch"


def over_epochs(epochs: Sequence[Row], labels: Mapping[str, str]) -> dict[str, Curve]:
    """Curve of each key that was logged, by the label of the key."""
    curves = {}
    for name, label in labels.items():
        points = [(row["epoch"], row[name]) for row in epochs if name in row]
        if points:
            curves[label] = [epoch for epoch, _ in points], [value for _, value in points]
    return curves


def figure_of(panels: Sequence[Panel]) -> "Figure":
    """Draw those panels that have a curve, in rows of equal length."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    filled = [panel for panel in panels if panel.curves]
    columns = ceil(sqrt(len(filled)))
    rows = ceil(len(filled) / max(1, columns))
    figure = Figure(figsize=(max(6, 4.8 * columns), max(4, 4 * rows)), layout="constrained")
    for place, panel in enumerate(filled, start=1):
        draw(figure.add_subplot(rows, columns, place), panel)
    return figure


def draw(axes: "Axes", panel: Panel) -> None:
    """Draw one panel; the axis of sizes is logarithmic where it has to be, which leaves out their zeros."""
    for index, (label, curve) in enumerate(panel.curves.items()):
        style = ":" if "estimate" in label else "-"
        marker = _MARKERS[index % len(_MARKERS)]
        # hollow, so that markers of equal values show one another
        axes.plot(*curve, label=label, marker=marker, markersize=4.5, markerfacecolor="none", linestyle=style)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.scale == "rate":
        axes.set_ylim(-0.02, 1.02)
    if panel.scale == "size" and _needs_logarithm([value for _, values in panel.curves.values() for value in values]):
        axes.set_yscale("log", nonpositive="mask")
    axes.grid(visible=True, which="both", alpha=0.25)
    if panel.xlabel == "epoch":
        _show_whole_epochs(axes, {epoch for epochs, _ in panel.curves.values() for epoch in epochs})
    else:
        axes.locator_params(axis="x", nbins=5)  # labels of decimal numbers are long
    legend_below(axes)


def legend_below(axes: "Axes") -> None:
    """Name the lines, if there are any, below the label of the horizontal axis."""
    if axes.lines:
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            borderaxespad=_LEGEND_PADDING,
            ncols=min(2, len(axes.lines)),
            fontsize=8,
            frameon=False,
        )


def whole_ticks(axes: "Axes") -> None:
    """Let the ticks of the horizontal axis be integers."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an optional dependency

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _needs_logarithm(values: Sequence[float]) -> bool:
    """Whether nothing is negative and the largest value is more than 10 times the smallest above zero."""
    positive = [value for value in values if value > 0]
    return bool(positive) and not any(value < 0 for value in values) and max(positive) > 10 * min(positive)


def _show_whole_epochs(axes: "Axes", epochs: set[float]) -> None:
    whole_ticks(axes)
    if len(epochs) == 1:
        (epoch,) = epochs
        axes.set_xlim(epoch - 0.5, epoch + 0.5)
