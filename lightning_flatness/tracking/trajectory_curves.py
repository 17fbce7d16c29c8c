"""How flatness, loss and confidence change along a path, and how that changes over the epochs of a run."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from lightning_flatness.tracking._choice import evenly_chosen
from lightning_flatness.tracking._panels import whole_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_EPOCHS = 8
"""Most epochs in one picture."""
_PANELS = {
    "neuronwise_mean": "Relative flatness κ, mean (small is flat)",
    "neuronwise_median": "Relative flatness κ, median",
    "loss_mean": "Cross-entropy, mean, in nats",
    "confidence_mean": "Confidence, mean",
    "flipped": "Share misclassified",
    "feature_distance_mean": "Distance in feature space, mean",
}
_LINES = {"loss_mean": "mean loss", "confidence_mean": "mean confidence", "flipped": "misclassified"}
_SMALLEST_SHOWN = 1e-12
_LOGARITHMIC = ("neuronwise_mean", "neuronwise_median")


def curves_over_epochs(
    trajectories: Sequence[Mapping[str, Any]], name: str, path: str = "attack", most: int = _MOST_EPOCHS
) -> dict[str, tuple[list[float], list[float]]]:
    """One curve of each of a few epochs, evenly chosen.

    Args:
        trajectories: of a monitor, as ``AttackTrajectoryMonitor.trajectories`` returns them.
        name: of the curve, ``"neuronwise_mean"`` for example.
        path: which of the monitor's paths.
        most: most epochs, at least 2.

    Returns:
        Label → positions and values.

    Example:
        >>> row = {"stage": "fit", "epoch": 3, "step": 40, "path": "attack", "dataloader_idx": 0}
        >>> curves_over_epochs([{**row, "curves": {"position": [0.0, 1.0], "loss_mean": [0.1, 2.0]}}], "loss_mean")
        {'epoch 3, step 40': ([0.0, 1.0], [0.1, 2.0])}
    """
    rows = evenly_chosen([row for row in trajectories if row["path"] == path], most)
    return {
        f"epoch {row['epoch']}, step {row['step']}": (row["curves"]["position"], row["curves"][name]) for row in rows
    }


def chart_lines(curves: Mapping[str, list[float]]) -> dict[str, tuple[list[float], list[float]]]:
    """Lines of one chart: log₁₀ of the mean relative flatness, so that it fits beside loss, confidence and flips.

    Args:
        curves: of one measurement.

    Returns:
        Label → positions and values.
    """
    flatness = [log10(max(value, _SMALLEST_SHOWN)) for value in curves["neuronwise_mean"]]
    lines = {"log10 of the mean flatness": flatness} | {label: curves[name] for name, label in _LINES.items()}
    return {label: (curves["position"], values) for label, values in lines.items()}


def trajectory_figure(trajectories: Sequence[Mapping[str, Any]], path: str = "attack") -> "Figure":
    """Draw what happens along a path, one line for each of at most 8 epochs.

    Where the model is confidently wrong behind its boundary, flatness first rises and then falls below where it began,
    while the confidence comes back.

    Args:
        trajectories: of one stage and one dataloader, as ``AttackTrajectoryMonitor.trajectories`` returns them.
        path: which of the monitor's paths.

    Returns:
        A matplotlib figure of six panels.

    Raises:
        ValueError: if other paths were recorded.
    """
    recorded = dict.fromkeys(one["path"] for one in trajectories)
    if recorded and path not in recorded:
        raise ValueError(f"`path` must be one of {', '.join(recorded)}, which were recorded, got {path!r}.")
    from matplotlib import colormaps  # noqa: PLC0415 - an optional dependency
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    figure = Figure(figsize=(15, 7), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for axes, (name, title) in zip(panels.flat, _PANELS.items(), strict=True):
        curves = curves_over_epochs(trajectories, name, path)
        shades = [place / max(1, len(curves) - 1) for place in range(len(curves))]
        for shade, (label, curve) in zip(shades, curves.items(), strict=True):
            axes.plot(*curve, color=colormaps["viridis"](0.9 * shade), marker=".", label=label)
        if name in _LOGARITHMIC and any(value > 0 for _, values in curves.values() for value in values):
            axes.set_yscale("log")
        axes.set_title(title)
        axes.grid(visible=True, which="both", alpha=0.25)
    if path == "attack":
        whole_ticks(panels[0, 0])  # of all, since they share the axis
    for axes in panels[-1]:
        axes.set_xlabel("gradient step" if path == "attack" else f"position on the path: {path}")
    if panels[0, 0].lines:
        panels[0, 0].legend(loc="best", frameon=False)
    return figure
