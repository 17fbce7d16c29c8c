"""The log keys, public API: callbacks log them, dashboards and documentation are made from them.

A key is ``{group}/{name}``. ``trainer.test`` logs ``test_{group}/{name}``; ``/dataloader_idx_N`` follows where several
dataloaders are measured.
"""

FLATNESS_GROUP = "flatness"

RELATIVE_FLATNESS = "flatness/relative_flatness"
GEOMETRIC_MEAN = "flatness/geometric_mean"
MEDIAN = "flatness/median"
P90 = "flatness/p90"
P99 = "flatness/p99"
LAYERWISE = "flatness/layerwise"
CONFIDENCE_FACTOR = "flatness/confidence_factor"
FEATURE_NORM = "flatness/feature_norm"
WEIGHT_NORM = "flatness/weight_norm"
CORRECT = "flatness/correct"
WRONG = "flatness/wrong"
TOP_EIGENVALUE = "flatness/top_eigenvalue"
NONFINITE = "flatness/nonfinite"

FLATNESS_KEYS = {
    RELATIVE_FLATNESS: "mean relative flatness κ of the samples, which is the κ of the mean loss; small is flat",
    GEOMETRIC_MEAN: "geometric mean of κ: the mean of log κ, exponentiated",
    MEDIAN: "median of κ, within 1 %",
    P90: "90th percentile of κ, within 1 %",
    P99: "99th percentile of κ, within 1 %",
    LAYERWISE: "mean of the layerwise variant ‖W‖_F² ‖φ‖² tr H_z",
    CONFIDENCE_FACTOR: "mean of tr H_z, for cross-entropy Σ p(1 − p): 0 is certain of one class",
    FEATURE_NORM: "mean norm ‖φ‖ of the features that enter the head",
    WEIGHT_NORM: "Frobenius norm ‖W‖_F of the head's weight",
    CORRECT: "mean κ of the correctly classified samples",
    WRONG: "mean κ of the wrongly classified samples",
    TOP_EIGENVALUE: "largest eigenvalue of the head's Hessian of the mean loss, over the first samples of the epoch",
    NONFINITE: "number of samples left out because a feature, logit or weight was NaN or infinite",
}
"""Key → what it says, in the order in which the documentation lists them."""


def histogram_key(part: str) -> str:
    """Key of the histogram of ``log10 κ`` over ``part`` of the samples: ``correct``, ``wrong`` or ``all``.

    Example:
        >>> histogram_key("correct")
        'flatness/log10_histogram_correct'
    """
    return f"{FLATNESS_GROUP}/log10_histogram_{part}"


def full_key(
    key: str, *, group: str | None = None, testing: bool = False, dataloader_idx: int = 0, num_dataloaders: int = 1
) -> str:
    """Key as it is logged by a monitor with another group, in ``trainer.test``, and with several dataloaders.

    Example:
        >>> full_key(MEDIAN, testing=True, dataloader_idx=1, num_dataloaders=2)
        'test_flatness/median/dataloader_idx_1'
    """
    own_group, name = key.split("/", maxsplit=1)
    prefix = "test_" if testing else ""
    suffix = f"/dataloader_idx_{dataloader_idx}" if num_dataloaders > 1 else ""
    return f"{prefix}{group or own_group}/{name}{suffix}"
