"""The panels that pictures of a run are made of: named curves over its epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def has(epochs: Sequence[Row], name: str) -> bool:
    return any(name in row for row in epochs)


def curve(epochs: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[name]) for row in epochs if name in row]
    return [epoch for epoch, _ in points], [value for _, value in points]


def draw(
    axes: "Axes",
    epochs: Sequence[Row],
    curves: dict[str, str],
    title: str,
    legend: Literal["best", "center right"] = "best",
) -> None:
    """Draw named curves on a logarithmic axis, which zero cannot be shown on."""
    drawn: list[Any] = [
        axes.plot(*curve(epochs, name), label=label, marker=".") for name, label in curves.items() if has(epochs, name)
    ]
    axes.set_title(title)
    if any(value > 0 for name in curves for value in curve(epochs, name)[1]):
        axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.25)
    if drawn:
        axes.legend(loc=legend, frameon=False)


def draw_rates(axes: "Axes", epochs: Sequence[Row], curves: dict[str, str], title: str) -> None:
    for name, label in curves.items():
        axes.plot(*curve(epochs, name), label=label, marker=".", linestyle=":" if name == keys.ALARM else "-")
    axes.set(title=title, ylim=(-0.02, 1.02))
    axes.grid(visible=True, alpha=0.25)
    if curves:
        axes.legend(loc="best", frameon=False)
