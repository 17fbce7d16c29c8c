"""Which end of the values of a log key is shown: the smallest or the largest one."""

from collections.abc import Mapping
from re import compile as pattern
from typing import Literal

from lightning_flatness.tracking import keys

Extreme = Literal["min", "max"]
ARROWS: dict[Extreme, str] = {"min": "↓", "max": "↑"}
_DIRECTIONS: tuple[Extreme, ...] = ("min", "max")

_NEITHER = pattern(r"alarm|wrong|(taylor_|lipschitz_)?violation_rate|.*steps_to_fool(_mean)?|.*(_low|_high)")
"""Alarms and checks, of which no single epoch excuses another; counts of steps; the ends of intervals."""
_EXTREMES: dict[str, dict[Extreme, str]] = {
    keys.FLATNESS_GROUP: {
        "max": "",
        "min": r"relative_flatness(_class_\d+)?|geometric_mean|median|p90|p99|layerwise|correct|top_eigenvalue",
    },
    keys.BOUND_GROUP: {
        "max": r".*radius_(mean|median|p10)|.*_accuracy_[\d_]+|.*_loss_below_log2",
        "min": r"loss_increase|lipschitz_.*|tightness",
    },
    keys.ATTACK_GROUP: {
        "max": r".*(robust|clean)_accuracy",
        "min": r".*success_rate|.*loss_increase",
    },
    keys.MASKING_GROUP: {"max": "", "min": r"zero_gradient_rate|.*underflow.*|probabilities|.*_gap"},
    keys.TRAJECTORY_GROUP: {"max": r"(.*_)?basin_width", "min": r"(.*_)?success_rate"},
    keys.SCALING_GROUP: {
        "max": r"(robust|clean)_accuracy.*",
        "min": r"loss_[\d_]+|calibration_error.*|transfer_success_rate.*|zero_gradient_rate.*",
    },
}
_OTHER_GROUPS: dict[Extreme, str] = {
    "max": r".*(robust|clean)_accuracy|(certified|estimated)_accuracy_[\d_]+|(.*_)?basin_width|.*_loss_below_log2",
    "min": r"relative_flatness(_class_\d+)?|.+_success_rate",
}
"""Names that only the library gives, in the groups that a user has named."""
_OWN: dict[Extreme, str] = {"max": r".*(?<![a-z])(acc|accuracy|auroc|f1)(?![a-z]).*", "min": r".*(loss|error).*"}
_NEXT_WORD = pattern("(?<=[a-z0-9])(?=[A-Z])")
"""Between the words of ``MulticlassAccuracy``, as collections of metrics are logged."""


def extreme_is(key: str) -> Extreme | None:
    """Whether the smallest or the largest value of a key is shown beside the last; None where neither is.

    It is the one that training aims at, not the best one: flatness alone protects nothing.

    Args:
        key: as it was logged, in a test or with the index of a dataloader too.

    Returns:
        ``"min"``, ``"max"`` or None. Names that are not the library's are judged by ``loss`` and ``error`` in them,
        then by the words ``acc``, ``accuracy``, ``auroc`` and ``f1``.

    Example:
        >>> extreme_is("flatness/median"), extreme_is("test_attack/linf_8_255_robust_accuracy/dataloader_idx_1")
        ('min', 'max')
        >>> extreme_is("val_acc"), extreme_is("trajectory/peak_step"), extreme_is("masking/alarm")
        ('max', None, None)
    """
    group, _, name = key.removeprefix("test_").partition("/")
    name = name.partition("/")[0]
    if _NEITHER.fullmatch(name):
        return None
    own_group = keys.MASKING_GROUP if group.endswith(f"_{keys.MASKING_GROUP}") else group
    if own_group in _EXTREMES:
        return _matching(_EXTREMES[own_group], name)
    return _matching(_OTHER_GROUPS, name) or _matching(_OWN, _words(key))


def is_own_score(key: str) -> bool:
    """Whether a name that is not the library's is that of an accuracy, or of another score between 0 and 1.

    Args:
        key: as it was logged.

    Returns:
        True for those whose largest value is shown because of the words in them.

    Example:
        >>> is_own_score("val_MulticlassAccuracy"), is_own_score("val_acc_loss"), is_own_score("attack/basin_width")
        (True, False, False)
    """
    return extreme_is(key) == "max" and pattern(_OWN["max"]).fullmatch(_words(key)) is not None


def _words(key: str) -> str:
    return _NEXT_WORD.sub("_", key).lower()


def _matching(patterns: Mapping[Extreme, str], name: str) -> Extreme | None:
    # The smallest first: an error is one, whatever else is in its name.
    return next((extreme for extreme in _DIRECTIONS if pattern(patterns[extreme]).fullmatch(name)), None)
