"""Which way is better, for every log key."""

from re import compile as pattern
from typing import Literal

from lightning_flatness.tracking import keys

Best = Literal["min", "max"]

_BEST = {
    keys.FLATNESS_GROUP: {
        "max": "",
        "min": r"relative_flatness(_class_\d+)?|geometric_mean|median|p90|p99|layerwise|correct|wrong|top_eigenvalue",
    },
    keys.BOUND_GROUP: {
        "max": r".*radius_(mean|median|p10)|.*_accuracy_[\d_]+|.*_loss_below_log2",
        "min": r"loss_increase|lipschitz_.*|(taylor_)?violation_rate|tightness",
    },
    keys.ATTACK_GROUP: {
        "max": r".*(robust|clean)_accuracy(_low|_high)?|.*steps_to_fool(_mean)?",
        "min": r".*success_rate(_low|_high)?|.*loss_increase",
    },
    keys.MASKING_GROUP: {"max": "", "min": r"alarm|zero_gradient_rate|.*underflow.*|probabilities|.*_gap"},
    keys.TRAJECTORY_GROUP: {"max": r"(.*_)?basin_width", "min": r"(.*_)?success_rate"},
    keys.SCALING_GROUP: {
        "max": r"(robust|clean)_accuracy.*",
        "min": r"loss_[\d_]+|calibration_error.*|transfer_success_rate.*|zero_gradient_rate.*",
    },
}
_OWN = {"max": r"(?i).*(acc|auroc|f1).*", "min": r"(?i).*(loss|error).*"}


def best_is(key: str) -> Best | None:
    """Whether the smallest or the largest value of a key is the best one; None where neither is.

    The flattest is called best, although flatness alone protects nothing.

    Args:
        key: as it was logged, in a test or with the index of a dataloader too.

    Returns:
        ``"min"``, ``"max"`` or None. Names that are not the library's are judged by ``loss``, ``error``, ``acc``,
        ``auroc`` and ``f1`` in them.

    Example:
        >>> best_is("flatness/relative_flatness"), best_is("test_attack/linf_8_255_robust_accuracy/dataloader_idx_1")
        ('min', 'max')
        >>> best_is("val_acc"), best_is("trajectory/peak_step")
        ('max', None)
    """
    group, _, name = key.removeprefix("test_").partition("/")
    patterns = _BEST.get(group)
    name = name.partition("/")[0] if patterns else key
    for best in ("max", "min"):
        if pattern((patterns or _OWN)[best]).fullmatch(name):
            return best
    return None
