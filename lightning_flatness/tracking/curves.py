"""The curves of one run, as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import own_names, robust_accuracies
from lightning_flatness.tracking._panels import Panel, figure_of, over_epochs
from lightning_flatness.tracking.bound_curves import bound_panels
from lightning_flatness.tracking.csv_log import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLATNESS_CURVES = {
    keys.RELATIVE_FLATNESS: "mean",
    keys.P90: "90th percentile",
    keys.MEDIAN: "median",
    keys.GEOMETRIC_MEAN: "geometric mean",
}
_ANSWER_CURVES = {keys.CORRECT: "correctly classified", keys.WRONG: "wrongly classified"}
_FACTOR_CURVES = {
    keys.CONFIDENCE_FACTOR: "confidence factor tr H_z",
    keys.GEOMETRY_FACTOR: "geometry factor",
    keys.FEATURE_NORM: "feature norm ‖φ‖",
    keys.WEIGHT_NORM: "weight norm ‖W‖",
}
_MASKING_CURVES = {
    name: name.split("/")[1].replace("_", " ")
    for name in (*keys.MASKING_KEYS, keys.ALARM)
    if name.endswith(("_gap", "gradient_rate", "probabilities", "survival", "alarm"))
}
"""Signs that are 0 where nothing is masked."""


def curves_figure(epochs: Sequence[Row]) -> "Figure":
    """Draw relative flatness, its factors, loss and accuracy over the epochs, and what attacks and bounds say.

    Args:
        epochs: one row per epoch, as :func:`~lightning_flatness.tracking.csv_log.read_epochs` gives them.

    Returns:
        A matplotlib figure with one panel for each of them that was logged; what is estimated is dotted.
    """
    attacks = over_epochs(epochs, robust_accuracies(epochs))
    panels = [
        Panel("Relative flatness κ (small is flat)", over_epochs(epochs, _FLATNESS_CURVES), scale="size"),
        Panel("κ by answer", over_epochs(epochs, _ANSWER_CURVES), scale="size"),
        Panel("What κ is made of", over_epochs(epochs, _FACTOR_CURVES), scale="size"),
        Panel("Loss", over_epochs(epochs, own_names(epochs, "loss")), scale="size"),
        Panel("Accuracy", over_epochs(epochs, own_names(epochs, "acc"))),
        Panel("Robust accuracy: still correct under attack", attacks, scale="rate"),
        Panel("Signs of gradient masking: 0 is good", over_epochs(epochs, _MASKING_CURVES), scale="rate"),
        *bound_panels(epochs),
    ]
    return figure_of(panels)
