"""What a multiplied head shows, as a table and a picture."""

from collections.abc import Mapping, Sequence
from math import inf, log10
from typing import TYPE_CHECKING, Any

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._panels import legend_below
from lightning_flatness.tracking.wandb_run import STEP_KEY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ScalingRow = dict[str, float]
"""``scale``, and the quantities of :data:`~lightning_flatness.tracking.keys.SCALING_QUANTITIES` at it.

``samples`` and ``attacked_samples``, where they were logged, are the same in every row.
"""

_RATES = {
    "robust_accuracy_cross_entropy": "robust accuracy, PGD on the cross-entropy",
    "robust_accuracy_margin": "robust accuracy, PGD on the margin",
    "transfer_success_rate": "success of inputs found at scale 1",
    "zero_gradient_rate": "gradients that are 0",
    "clean_accuracy": "clean accuracy",
    "confidence": "confidence",
    "calibration_error": "expected calibration error",
}
_SIZES = {
    "relative_flatness": "relative flatness κ, mean",
    "relative_flatness_median": "relative flatness κ, median",
    "loss": "loss, nats",
}
_COUNTS = {"samples": keys.SCALING_SAMPLES, "attacked_samples": keys.SCALING_ATTACKED}
_WHOLE = {"clean_accuracy": ("samples", "all {}")} | dict.fromkeys(
    ("robust_accuracy_cross_entropy", "robust_accuracy_margin", "zero_gradient_rate"),
    ("attacked_samples", "of {} attacked"),
)
"""Share → what counts its samples, and how a legend says so."""
_SMALLEST_SHOWN = 1e-10


def scaling_rows(row: Mapping[str, Any]) -> list[ScalingRow]:
    """Lay out what one measurement has logged, one row per scale.

    Args:
        row: values under plain keys, as in a row of :meth:`~lightning_flatness.HeadScalingMonitor.history` or of a
            ``metrics.csv``; other keys are left out.

    Returns:
        Rows in order of the scale.

    Example:
        >>> scaling_rows({"scaling/loss_10": 0.5, "scaling/loss_0_5": 0.2, "val_loss": 0.3})
        [{'scale': 0.5, 'loss': 0.2}, {'scale': 10.0, 'loss': 0.5}]
    """
    rows: dict[float, ScalingRow] = {}
    for name in keys.SCALING_QUANTITIES:
        start = f"{keys.SCALING_GROUP}/{name}_"
        for key in row:
            scale = keys.label_radius(key.removeprefix(start)) if key.startswith(start) else None
            if scale is not None:
                rows.setdefault(scale, {"scale": scale})[name] = float(row[key])
    counts = {name: float(row[key]) for name, key in _COUNTS.items() if key in row}
    return [rows[scale] | counts for scale in sorted(rows)]


def scaling_figure(rows: Sequence[ScalingRow]) -> "Figure":
    """Draw flatness and loss, and what attacks and confidence say, over the scale of the head.

    Sizes below 1e-10 on a logarithmic axis are drawn there, and its label says so.

    Args:
        rows: as :func:`scaling_rows` gives them.

    Returns:
        A matplotlib figure of two panels.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    figure = Figure(figsize=(11, 5), layout="constrained")
    sizes, rates = figure.subplots(1, 2)
    shown = [row[name] for row in rows for name in _SIZES if name in row]
    is_logarithmic = any(value > 0 for value in shown)
    _draw(sizes, rows, _SIZES, smallest=_SMALLEST_SHOWN if is_logarithmic else -inf)
    _draw(rates, rows, {name: label + _of_how_many(name, rows) for name, label in _RATES.items()})
    if is_logarithmic:
        sizes.set_yscale("log")
        if min(shown) < _SMALLEST_SHOWN:
            sizes.set_ylabel(f"values below {_SMALLEST_SHOWN:g} are drawn there")
    sizes.set_title("The same decisions, other flatness")
    rates.set(title="The same decisions, other robustness?", ylim=(-0.02, 1.02))
    return figure


def _draw(axes: "Axes", rows: Sequence[ScalingRow], labels: Mapping[str, str], smallest: float = -inf) -> None:
    for name, label in labels.items():
        points = [(row["scale"], max(row[name], smallest)) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=".")
    axes.set(xscale="log", xlabel="scale of the head")
    axes.grid(visible=True, alpha=0.25)
    legend_below(axes)


def _of_how_many(name: str, rows: Sequence[ScalingRow]) -> str:
    count, words = _WHOLE.get(name, ("", ""))
    return next((f", {words.format(int(row[count]))}" for row in rows if count in row), "")


def log_scaling(run: Any, table_key: str, chart_key: str, step: int, rows: Sequence[ScalingRow]) -> None:
    """Send the rows as a table, and the shares among them as lines over the logarithm of the scale.

    Args:
        run: a Weights & Biases run.
        table_key: of the table.
        chart_key: of the chart, where κ is shown as a share of its largest value.
        step: of the trainer.
        rows: as :func:`scaling_rows` gives them, at least one.
    """
    from wandb import Table  # noqa: PLC0415 - takes a second, and only these runs need it
    from wandb.plot import line_series  # noqa: PLC0415 - likewise

    columns: list[str | int] = [
        "scale",
        *(name for name in (*keys.SCALING_QUANTITIES, *_COUNTS) if any(name in row for row in rows)),
    ]
    table = Table(columns=columns, data=[[row.get(str(name)) for name in columns] for row in rows])
    lines = {label: [row[name] for row in rows] for name, label in _RATES.items() if all(name in row for row in rows)}
    for name in ("relative_flatness", "relative_flatness_median"):
        values = [row.get(name, 0.0) for row in rows]
        if max(values) > 0:
            lines[f"{_SIZES[name]} / largest"] = [value / max(values) for value in values]
    chart = line_series(
        xs=[log10(row["scale"]) for row in rows],
        ys=list(lines.values()),
        keys=list(lines),
        title="The head multiplied by a number: same decisions",
        xname="log10 scale",
    )
    run.log({table_key: table, chart_key: chart, STEP_KEY: step})
