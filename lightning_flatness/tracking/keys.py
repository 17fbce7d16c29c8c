"""The log keys, public API: callbacks log them, dashboards and documentation are made from them.

A key is ``{group}/{name}``. ``trainer.test`` logs ``test_{group}/{name}``; ``/dataloader_idx_N`` follows where several
dataloaders are measured.
"""

from collections.abc import Sequence

from lightning_flatness.tracking.logged_keys import full_key as full_key
from lightning_flatness.tracking.logged_keys import plain_keys as plain_keys
from lightning_flatness.tracking.radius_labels import label_radius as label_radius
from lightning_flatness.tracking.radius_labels import radius_label as radius_label
from lightning_flatness.tracking.radius_labels import radius_text as radius_text

FLATNESS_GROUP = "flatness"
ATTACK_GROUP = "attack"
MASKING_GROUP = "masking"
TRAJECTORY_GROUP = "trajectory"
BOUND_GROUP = "bound"
SCALING_GROUP = "scaling"
GROUPS = (FLATNESS_GROUP, ATTACK_GROUP, MASKING_GROUP, BOUND_GROUP, TRAJECTORY_GROUP, SCALING_GROUP)

RELATIVE_FLATNESS = "flatness/relative_flatness"
GEOMETRIC_MEAN = "flatness/geometric_mean"
MEDIAN = "flatness/median"
P90 = "flatness/p90"
P99 = "flatness/p99"
LAYERWISE = "flatness/layerwise"
CONFIDENCE_FACTOR = "flatness/confidence_factor"
GEOMETRY_FACTOR = "flatness/geometry_factor"
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
    GEOMETRY_FACTOR: "mean of tr(Wᵀ H_z W) / tr H_z: the part of the head in κ, whatever the confidence",
    FEATURE_NORM: "mean norm ‖φ‖ of the features that enter the head",
    WEIGHT_NORM: "Frobenius norm ‖W‖_F of the head's weight",
    CORRECT: "mean κ of the correctly classified samples",
    WRONG: "mean κ of the wrongly classified samples",
    TOP_EIGENVALUE: "largest eigenvalue of the head's Hessian of the mean loss, over the first samples of each process",
    NONFINITE: "number of samples left out because a feature, logit or weight was NaN or infinite",
}
"""Key → what it says, in the order in which the documentation lists them."""


SUCCESS_RATE = "success_rate"
SUCCESS_RATE_LOW = "success_rate_low"
SUCCESS_RATE_HIGH = "success_rate_high"
ROBUST_ACCURACY = "robust_accuracy"
ROBUST_ACCURACY_LOW = "robust_accuracy_low"
ROBUST_ACCURACY_HIGH = "robust_accuracy_high"
CLEAN_ACCURACY = "clean_accuracy"
LOSS_INCREASE = "loss_increase"
LOSS_SUCCESS_RATE = "loss_success_rate"
STEPS_TO_FOOL = "steps_to_fool"
STEPS_TO_FOOL_MEAN = "steps_to_fool_mean"
SAMPLES = "samples"
SECONDS = "seconds"
NONFINITE_SAMPLES = "nonfinite"
REJECTED = "rejected"

ATTACK_QUANTITIES = {
    SUCCESS_RATE: "fooled samples / initially correct samples",
    SUCCESS_RATE_LOW: "lower end of its 95 % Wilson interval, where only a part of the samples was attacked",
    SUCCESS_RATE_HIGH: "upper end of that interval",
    ROBUST_ACCURACY: "samples that are still correct / all attacked samples",
    ROBUST_ACCURACY_LOW: "lower end of its 95 % Wilson interval, where only a part of the samples was attacked",
    ROBUST_ACCURACY_HIGH: "upper end of that interval",
    CLEAN_ACCURACY: "initially correct samples / all attacked samples",
    LOSS_INCREASE: "mean rise of the cross-entropy, in nats, to where the attack stopped; 0 where initially wrong",
    LOSS_SUCCESS_RATE: "share of the initially correct samples whose loss rose by more than the threshold",
    STEPS_TO_FOOL: "median number of gradient steps to the first fooling input, over the fooled samples",
    STEPS_TO_FOOL_MEAN: "mean of that number",
    SAMPLES: "number of attacked samples",
    SECONDS: "seconds that the attack took, on the slowest process",
    NONFINITE_SAMPLES: "number of samples whose logits or gradients were NaN or infinite",
    REJECTED: "number of results that were no valid inputs: NaN, out of the ball or out of range",
}
"""Quantity → what it says, in the order in which the documentation lists them."""
ATTACK_KEYS = {f"{ATTACK_GROUP}/{{label}}_{name}": meaning for name, meaning in ATTACK_QUANTITIES.items()}
"""Key → what it says; ``{label}`` is the name of the attack, or as in :func:`threat_label`."""

INTERVAL_ENDS = ("_low", "_high")
"""What follows the name of a share in the keys of the ends of its interval."""
WORST_CASE = "worst_case"
"""Label of what at least one of several attacks has done."""
EPSILON_CURVE = "attack/epsilon_curve"
"""Key of the figure of robust accuracy over ε."""
ADVERSARIAL_EXAMPLES = "attack/examples"
"""Key of the table of adversarial examples."""
ADVERSARIAL_IMAGES = "attack/example_images"
"""Key of the panel with their pictures."""
ALARM = "masking/alarm"
"""Key of the alarm of gradient masking."""
ALARM_MEANING = "1 where a rule of gradient masking fires, else 0"
"""What the alarm says; its reasons are those of :data:`MASKING_REASONS`."""
MASKING_REASONS = "masking/reasons"
"""Why the alarm is on, in words, in the summary of a run."""

MASKING_KEYS = {
    "masking/zero_gradient_rate": "share whose cross-entropy has an input gradient of exactly 0",
    "masking/gradient_underflow": "share of that gradient's elements that are 0 only because they are too small",
    "masking/loss_underflow_rate": "share whose cross-entropy is exactly 0; high for any very confident model",
    "masking/probabilities": "share whose outputs are probabilities instead of logits",
    "masking/randomness": "largest change of a logit in a second pass, as a share of the largest logit",
    "masking/gradient_alignment": "mean cosine of the gradients at an input and at a random point near it",
    "masking/directional_correlation": "cosine of how the logits change and of how their gradients say they would",
    "masking/loss_decrease_rate": "share of the steps of the plain attack in which the loss fell",
    "masking/success_rate": "share fooled by the plain attack, PGD with 5 steps on the cross-entropy",
    "masking/loss_gap": "share of confident samples that the margin loss fools and the cross-entropy does not",
    "masking/transfer_gap": "share that adversarial inputs of an earlier epoch fool and the plain attack does not",
    "masking/temperature_gap": "share fooled only once the logits are divided by a temperature",
    "masking/black_box_gap": "share that 300 queries of random search fool and PGD does not",
    "masking/unbounded_survival": "share not fooled by an attack that may reach every valid input of another class",
}
"""Key → what it says, of the initially correct samples of the fixed part."""

EXPENSIVE_MASKING_KEYS = (
    "masking/transfer_gap",
    "masking/temperature_gap",
    "masking/black_box_gap",
)
"""Keys of the rules that do not run at every measurement."""

CLEAN_FLATNESS = "trajectory/clean_flatness"
PEAK_FLATNESS = "trajectory/peak_flatness"
PEAK_STEP = "trajectory/peak_step"
FINAL_FLATNESS = "trajectory/final_flatness"
VALLEY_RATE = "trajectory/valley_rate"
TRAJECTORY_SUCCESS_RATE = "trajectory/success_rate"
BASIN_WIDTH = "trajectory/basin_width"
BASIN_CENSORED_RATE = "trajectory/basin_censored_rate"
TRAJECTORY_SAMPLES = "trajectory/samples"
TRAJECTORY_NONFINITE = "trajectory/nonfinite"

TRAJECTORY_KEYS = {
    CLEAN_FLATNESS: "mean neuronwise κ at the clean inputs, of the initially correct samples",
    PEAK_FLATNESS: "largest mean κ over the points of the path",
    PEAK_STEP: "where that is: gradient step, part of the straight line, or severity",
    FINAL_FLATNESS: "mean κ at the last point of the path",
    VALLEY_RATE: "share of the fooled samples that end flatter than they began, with a confidence above 0.9",
    TRAJECTORY_SUCCESS_RATE: "share of the initially correct samples that are misclassified at the last point",
    BASIN_WIDTH: "median length of the perturbation, in data units, at which the loss has risen by log 2",
    BASIN_CENSORED_RATE: "share whose loss never rises by so much; if it is above 1/2 there is no `basin_width`",
    TRAJECTORY_SAMPLES: "number of initially correct samples that were followed",
    TRAJECTORY_NONFINITE: "number of samples left out because a loss or a feature was NaN or infinite",
}
"""Key → what it says, of the path of the attack; those of other paths are ``trajectory/{path}_{name}``."""

TRAJECTORY_CHART = "trajectory/curves"
"""Key of the chart of flatness, loss, confidence and misclassified share along the path, of one measurement."""
TRAJECTORY_EPOCHS_CHART = "trajectory/over_epochs"
"""Key of the chart of the flatness along the path, one line for each of a few epochs."""


def trajectory_key(name: str, path: str = "attack") -> str:
    """Key of a quantity of one path.

    Args:
        name: of the quantity, as in ``AttackTrajectory.compute()``.
        path: along which it was measured.

    Returns:
        Key in the group ``trajectory``.

    Example:
        >>> trajectory_key("peak_flatness"), trajectory_key("peak_flatness", "noise")
        ('trajectory/peak_flatness', 'trajectory/noise_peak_flatness')
    """
    return f"{TRAJECTORY_GROUP}/{name if path == 'attack' else f'{path}_{name}'}"


DECISION_RADIUS_MEDIAN = "bound/decision_radius_median"
CERTIFIED_RADIUS_MEAN = "bound/certified_radius_mean"
CERTIFIED_RADIUS_MEDIAN = "bound/certified_radius_median"
CERTIFIED_RADIUS_P10 = "bound/certified_radius_p10"
ESTIMATED_RADIUS_MEAN = "bound/estimated_radius_mean"
ESTIMATED_RADIUS_MEDIAN = "bound/estimated_radius_median"
ESTIMATED_RADIUS_P10 = "bound/estimated_radius_p10"
CERTIFIED_ACCURACY = "bound/certified_accuracy_{radius}"
ESTIMATED_ACCURACY = "bound/estimated_accuracy_{radius}"
BOUND_LOSS_INCREASE = "bound/loss_increase"
CERTIFIED_LOSS_BELOW_LOG2 = "bound/certified_loss_below_log2"
ESTIMATED_LOSS_BELOW_LOG2 = "bound/estimated_loss_below_log2"
LIPSCHITZ_CERTIFIED = "bound/lipschitz_certified"
LIPSCHITZ_ESTIMATED = "bound/lipschitz_estimated"
VIOLATION_RATE = "bound/violation_rate"
TIGHTNESS = "bound/tightness"
TAYLOR_VIOLATION_RATE = "bound/taylor_violation_rate"
LIPSCHITZ_VIOLATION_RATE = "bound/lipschitz_violation_rate"
BOUND_SAMPLES = "bound/samples"
BOUND_NONFINITE = "bound/nonfinite"

BOUND_KEYS = {
    CERTIFIED_ACCURACY: "share of all samples whose right prediction no perturbation of that length can change",
    ESTIMATED_ACCURACY: "the same by an estimate of the Lipschitz constant from below, which guarantees nothing",
    CERTIFIED_RADIUS_MEAN: "mean length of the perturbations that change no prediction, 0 where it is wrong",
    CERTIFIED_RADIUS_MEDIAN: "median of that length, within 1 %",
    CERTIFIED_RADIUS_P10: "10th percentile of that length, within 1 %",
    ESTIMATED_RADIUS_MEAN: "mean length by an estimate of the Lipschitz constant, which guarantees nothing",
    ESTIMATED_RADIUS_MEDIAN: "median of that length, within 1 %",
    ESTIMATED_RADIUS_P10: "10th percentile of that length, within 1 %",
    DECISION_RADIUS_MEDIAN: "median distance of the features to the decision boundary, within 1 %; 0 where wrong",
    BOUND_LOSS_INCREASE: "mean bound on the rise of the cross-entropy, in nats, under perturbations of length ε",
    CERTIFIED_LOSS_BELOW_LOG2: "share of all samples whose cross-entropy then stays below log 2: the prediction stands",
    ESTIMATED_LOSS_BELOW_LOG2: "the same by an estimate of the Lipschitz constant",
    LIPSCHITZ_CERTIFIED: "largest upper bound on the Lipschitz constant of the features in the inputs",
    LIPSCHITZ_ESTIMATED: "largest estimate of that constant from below",
    VIOLATION_RATE: "share of the attacked samples whose loss rose by more than the bound allows; 0, or there is a bug",
    TIGHTNESS: "median of bound / rise of the loss, within 1 %, for the displacements that attacks really cause",
    TAYLOR_VIOLATION_RATE: "share whose loss rose by more than the published bound says, which assumes a minimum",
    LIPSCHITZ_VIOLATION_RATE: "share whose features moved farther than L allows; 0 for a certificate, or it is none",
    BOUND_SAMPLES: "number of samples with a Lipschitz constant, which all but violations and tightness rest on",
    BOUND_NONFINITE: "number of them with a NaN or infinity, for which nothing is guaranteed",
}
"""Key → what it says; ``{radius}`` is a length in data units as in ``radius_label``."""

BOUND_CURVE = "bound/epsilon_curve"
"""Key of the figure of the accuracy that is guaranteed and the one that attacks leave, over ε."""


SCALING_ATTACK_QUANTITIES = {
    "robust_accuracy_cross_entropy": "attacked samples still correct after PGD on the cross-entropy / all of them",
    "robust_accuracy_margin": "attacked samples still correct after PGD on the margin / all of them",
    "transfer_success_rate": "share of the inputs that fool at scale 1 that fool at this scale too",
    "zero_gradient_rate": "share of the attacked samples whose cross-entropy has an input gradient of exactly 0",
}
SCALING_QUANTITIES = {
    "relative_flatness": "mean relative flatness κ with weight and bias of the head times the scale",
    "relative_flatness_median": "median of κ, within 1 %",
    "loss": "mean cross-entropy, in nats",
    "confidence": "mean probability of the predicted class",
    "calibration_error": "expected calibration error in 15 bins: how far confidence is from accuracy",
    "clean_accuracy": "share of correct predictions: the same at every scale",
    **SCALING_ATTACK_QUANTITIES,
}
"""Quantity → what it says; those of attacks only with a threat model."""
SCALING_KEYS = {f"{SCALING_GROUP}/{name}_{{scale}}": meaning for name, meaning in SCALING_QUANTITIES.items()}
"""Key → what it says; ``{scale}`` is a number as in ``radius_label``."""

SCALING_SAMPLES = "scaling/samples"
SCALING_ATTACKED = "scaling/attacked_samples"
SCALING_NONFINITE = "scaling/nonfinite"
SCALING_COUNTS = {
    SCALING_SAMPLES: "number of samples",
    SCALING_ATTACKED: "number of attacked samples",
    SCALING_NONFINITE: "number of samples left out because a feature or logit was NaN or infinite",
}
"""Key → what it counts."""
SCALING_TABLE = "scaling/table"
"""Key of the table with one row per scale."""
SCALING_CHART = "scaling/curves"
"""Key of the chart over the scale."""


def scaling_key(quantity: str, scale: float) -> str:
    """Key of a quantity of the head multiplied by a number.

    Args:
        quantity: one of ``SCALING_QUANTITIES``.
        scale: factor of the head.

    Returns:
        Key in the group ``scaling``.

    Example:
        >>> scaling_key("loss", 0.25), scaling_key("loss", 100.0)
        ('scaling/loss_0_25', 'scaling/loss_100')
    """
    return f"{SCALING_GROUP}/{quantity}_{radius_label(scale)}"


def class_key(key: str, index: int) -> str:
    """Key of the part of a value that belongs to one class.

    Args:
        key: of the value over all classes.
        index: of the class.

    Returns:
        The key with the class behind it.

    Example:
        >>> class_key(RELATIVE_FLATNESS, 3)
        'flatness/relative_flatness_class_3'
    """
    return f"{key}_class_{index}"


def bound_key(name: str) -> str:
    """Key of a value of :class:`~lightning_flatness.metrics.LocalRobustnessBound` or its check.

    Args:
        name: as in ``compute()``.

    Returns:
        Key in the group ``bound``.

    Example:
        >>> bound_key("tightness")
        'bound/tightness'
    """
    return f"{BOUND_GROUP}/{name}"


def accuracy_key(radius: float, *, certified: bool) -> str:
    """Key of the accuracy that no perturbation up to a radius can lower.

    Args:
        radius: length of the perturbation in data units.
        certified: whether the Lipschitz constant is an upper bound.

    Returns:
        Key in the group ``bound``.

    Example:
        >>> accuracy_key(8 / 255, certified=True), accuracy_key(0.5, certified=False)
        ('bound/certified_accuracy_8_255', 'bound/estimated_accuracy_0_5')
    """
    return (CERTIFIED_ACCURACY if certified else ESTIMATED_ACCURACY).format(radius=radius_label(radius))


def masking_key(name: str) -> str:
    """Key of a signal of gradient masking.

    Args:
        name: of the signal.

    Returns:
        Key in the group ``masking``.

    Example:
        >>> masking_key("zero_gradient_rate")
        'masking/zero_gradient_rate'
    """
    return f"{MASKING_GROUP}/{name}"


def attack_key(label: str, quantity: str) -> str:
    """Key of one quantity of one attack.

    Args:
        label: of the attack.
        quantity: one of ``ATTACK_QUANTITIES``.

    Returns:
        Key in the group ``attack``.

    Example:
        >>> attack_key("linf_8_255", ROBUST_ACCURACY)
        'attack/linf_8_255_robust_accuracy'
    """
    return f"{ATTACK_GROUP}/{label}_{quantity}"


def threat_label(norm: str, epsilon: float | Sequence[float]) -> str:
    """Label of an attack that is known by its threat model only; several radii are told by the largest.

    Args:
        norm: of the ball.
        epsilon: its radius in data units, or one per channel.

    Returns:
        Label of letters, digits and ``_``.

    Example:
        >>> threat_label("linf", 8 / 255), threat_label("l2", 0.5)
        ('linf_8_255', 'l2_0_5')
    """
    return f"{norm}_{radius_label(max(epsilon) if isinstance(epsilon, Sequence) else epsilon)}"


def histogram_key(part: str) -> str:
    """Key of the histogram of ``log10 κ`` over ``part`` of the samples: ``correct``, ``wrong`` or ``all``.

    Args:
        part: of the samples.

    Returns:
        Key in the group ``flatness``.

    Example:
        >>> histogram_key("correct")
        'flatness/log10_histogram_correct'
    """
    return f"{FLATNESS_GROUP}/log10_histogram_{part}"
