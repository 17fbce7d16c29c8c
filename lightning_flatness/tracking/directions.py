"""Which way is better, for every log key."""

from collections.abc import Mapping
from re import compile as pattern
from typing import Literal

from lightning_flatness.tracking import keys

Best = Literal["min", "max"]
_DIRECTIONS: tuple[Best, ...] = ("min", "max")

_BEST: dict[str, dict[Best, str]] = {
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
_OTHER_GROUPS: dict[Best, str] = {
    "max": r".*(robust|clean)_accuracy(_low|_high)?|(certified|estimated)_accuracy_[\d_]+|.*steps_to_fool(_mean)?"
    r"|(.*_)?basin_width|.*_loss_below_log2",
    "min": r"relative_flatness(_class_\d+)?|.+_success_rate(_low|_high)?|(taylor_|lipschitz_)?violation_rate",
}
"""Names that only the library gives, in the groups that a user has named."""
_OWN: dict[Best, str] = {"max": r".*(?<![a-z])(acc|accuracy|auroc|f1)(?![a-z]).*", "min": r".*(loss|error).*"}
_NEXT_WORD = pattern("(?<=[a-z0-9])(?=[A-Z])")
"""Between the words of ``MulticlassAccuracy``, as collections of metrics are logged."""


def best_is(key: str) -> Best | None:
    """Whether the smallest or the largest value of a key is the best one; None where neither is.

    The flattest is called best, although flatness alone protects nothing.

    Args:
        key: as it was logged, in a test or with the index of a dataloader too.

    Returns:
        ``"min"``, ``"max"`` or None. Names that are not the library's are judged by ``loss`` and ``error`` in them,
        then by the words ``acc``, ``accuracy``, ``auroc`` and ``f1``.

    Example:
        >>> best_is("flatness/relative_flatness"), best_is("test_attack/linf_8_255_robust_accuracy/dataloader_idx_1")
        ('min', 'max')
        >>> best_is("val_acc"), best_is("trajectory/peak_step")
        ('max', None)
    """
    group, _, name = key.removeprefix("test_").partition("/")
    name = name.partition("/")[0]
    own_group = keys.MASKING_GROUP if group.endswith(f"_{keys.MASKING_GROUP}") else group
    if own_group in _BEST:
        return _matching(_BEST[own_group], name)
    return _matching(_OTHER_GROUPS, name) or _matching(_OWN, _NEXT_WORD.sub("_", key).lower())


def _matching(patterns: Mapping[Best, str], name: str) -> Best | None:
    # The smallest first: an error is one, whatever else is in its name.
    return next((best for best in _DIRECTIONS if pattern(patterns[best]).fullmatch(name)), None)
