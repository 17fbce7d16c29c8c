"""Reasons not to believe what a run seems to show, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lightning_flatness.attacks.masking_rules import DIAGNOSED_SAMPLES, MASKING_RULES, masking_reasons
from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import logged
from lightning_flatness.tracking.comparison._epoch_words import in_epochs
from lightning_flatness.tracking.csv_log import Row
from lightning_flatness.tracking.runs import Run
from lightning_flatness.tracking.runs._names import printable

_FAR_APART = 0.25
"""Difference of two robust accuracies of the same samples that is no matter of a few more steps."""
_MUCH_FLATTER = 10.0
_BY_CONFIDENCE = 0.8
"""Least share of the fall of log κ that is that of the confidence factor."""
_FOOLED = 0.1
"""Share of the clean accuracy that an attack leaves of a model that is not robust."""
_SMALLEST = 2.0**-149
"""Of the positive numbers in float32: what is logged as 0 may be less than that."""
_ALARM, _REASONS, _VIOLATIONS, _PASSED, _CERTIFIED = (
    key.split("/")[1]
    for key in (
        keys.ALARM,
        keys.MASKING_REASONS,
        keys.VIOLATION_RATE,
        keys.LIPSCHITZ_VIOLATION_RATE,
        keys.LIPSCHITZ_CERTIFIED,
    )
)
_WORST = f"{keys.WORST_CASE}_{keys.ROBUST_ACCURACY}"
_ANYBODYS = {keys.BOUND_SAMPLES, keys.BOUND_NONFINITE, keys.BOUND_LOSS_INCREASE}
_DOCUMENTED = {
    key.split("/")[1]: key.split("/")[0]
    for key in (*keys.BOUND_KEYS, *keys.MASKING_KEYS, keys.ALARM)
    if key not in _ANYBODYS
}
"""Name → group, of the keys that tell a monitor where it logs under a group of its own."""


class _Place(NamedTuple):
    """Where a monitor has logged: its group, with ``test_``, and the end of its keys, with the dataloader."""

    group: str
    end: str

    def key(self, name: str) -> str:
        return f"{self.group}/{name}{self.end}"


def alarms(run: Run) -> list[str]:
    """Say why the flatness or the robust accuracy of a run should not be believed.

    Args:
        run: read from any logger.

    Returns:
        A paragraph per alarm; none for a run of which nothing speaks against it, as far as it was measured.

    Example:
        >>> rows = [{"epoch": 0.0, "bound/violation_rate": 0.0}, {"epoch": 1.0, "bound/violation_rate": 0.02}]
        >>> alarms(Run("first", "", rows))
        ['bound/violation_rate was up to 2% (in epoch 1): the loss of attacked samples rose by more than the bound
        allows, which cannot be; the bound or its constant is wrong.']
    """
    rules = (masked_gradients, fooled_by_margin, flat_by_confidence, broken_bounds, broken_certificates)
    return [paragraph for rule in rules for paragraph in rule(run)]


def remarks(run: Run) -> list[str]:
    """Say which curves of a run are no evidence, although the run itself is beyond reproach.

    Args:
        run: read from any logger.

    Returns:
        A sentence per attack that finds far less than another one of the same samples.

    Example:
        >>> row = {"epoch": 0.0, "attack/fgsm_success_rate": 0.4, "attack/fgsm_robust_accuracy": 0.5}
        >>> row |= {"attack/pgd_success_rate": 0.9, "attack/pgd_robust_accuracy": 0.1}
        >>> remarks(Run("first", "", [row | {"attack/worst_case_robust_accuracy": 0.1}]))
        ['In epoch 0, fgsm leaves 50% robust accuracy where pgd leaves 10% of the same samples: the curve of fgsm is no
        evidence of robustness.']
    """
    return list(fooled_attacks(run))


def masked_gradients(run: Run) -> Iterator[str]:
    """The alarm that the run itself has logged, when it was on, and why.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    for place in _places(run, _ALARM):
        key = place.key(_ALARM)
        measured = [row for row in run.epochs if key in row]
        on = [row for row in measured if row[key] > 0]
        if not on:
            continue
        still = on[-1] is measured[-1]
        state = "on" if still else "off again"
        reasons = run.texts.get(place.key(_REASONS)) if still else None
        why = printable(reasons or _reasons_by_values(run, place, on[-1]))
        yield (
            f"Gradients are masked: {key} was 1 {_when(on)}, of {len(measured)} measured, and is {state} in the "
            f"last. {why}"
        )


def broken_bounds(run: Run) -> Iterator[str]:
    """A bound that a loss has passed.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    for key, rows in _above_zero(run, _VIOLATIONS):
        yield (
            f"{key} was up to {_largest(rows, key)} ({_when(rows)}): the loss of attacked samples rose by more "
            "than the bound allows, which cannot be; the bound or its constant is wrong."
        )


def broken_certificates(run: Run) -> Iterator[str]:
    """A Lipschitz constant called certified that features have passed; an estimate is too small by its nature.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    for place in _places(run, _PASSED):
        key = place.key(_PASSED)
        rows = [row for row in run.epochs if row.get(key, 0) > 0 and place.key(_CERTIFIED) in row]
        if rows:
            yield (
                f"{key} was up to {_largest(rows, key)} ({_when(rows)}): features moved farther than the constant "
                "allows; it is called certified and is not."
            )


def fooled_attacks(run: Run) -> Iterator[str]:
    """An attack that leaves far more robust accuracy than another one of the same samples.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    for place in _places(run, _WORST):
        row = [row for row in run.epochs if place.key(_WORST) in row][-1]
        left = _left_by_attacks(row, place)
        if not left:
            continue
        strongest = min(left, key=lambda label: left[label])
        for label, robust in left.items():
            if robust - left[strongest] > _FAR_APART:
                yield (
                    f"In epoch {row['epoch']:g}, {label} leaves {robust:.0%} robust accuracy where "
                    f"{strongest} leaves {left[strongest]:.0%} of the same samples: the curve of {label} is no "
                    "evidence of robustness."
                )


def fooled_by_margin(run: Run) -> Iterator[str]:
    """PGD on the cross-entropy that finds far less than PGD on the margin, with the head as it was trained.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    names = [keys.scaling_key(f"robust_accuracy_{loss}", 1.0) for loss in ("cross_entropy", "margin")]
    plain, margin = (name.split("/")[1] for name in names)
    for place in _places(run, plain):
        rows = [row for row in run.epochs if place.key(plain) in row and place.key(margin) in row]
        if rows and rows[-1][place.key(plain)] - rows[-1][place.key(margin)] > _FAR_APART:
            yield (
                f"In epoch {rows[-1]['epoch']:g}, with the head as it was trained, PGD on the "
                f"cross-entropy leaves {rows[-1][place.key(plain)]:.0%} robust accuracy and PGD on the margin "
                f"{rows[-1][place.key(margin)]:.0%}: what an attack on the cross-entropy leaves is no evidence."
            )


def flat_by_confidence(run: Run) -> Iterator[str]:
    """Flatness that came with confidence alone, of a model that attacks fool.

    Args:
        run: read from any logger.

    Yields:
        A paragraph for each place where it is so.
    """
    name, factor = (key.split("/")[1] for key in (keys.RELATIVE_FLATNESS, keys.CONFIDENCE_FACTOR))
    for place in _places(run, name):
        flatness, confidence = place.key(name), place.key(factor)
        rows = [row for row in run.epochs if row.get(flatness, -1) >= 0 and row.get(confidence, -1) >= 0]
        attacked = _fooling_attack(run)
        if not rows or attacked is None:
            continue
        sharpest = max(rows, key=lambda row: row[flatness])
        fall, own_fall = (sharpest[key] / max(rows[-1][key], _SMALLEST) for key in (flatness, confidence))
        if fall > _MUCH_FLATTER and own_fall > fall**_BY_CONFIDENCE:
            yield (
                f"Flat by confidence: {flatness} fell {fall:.3g}-fold from epoch {sharpest['epoch']:g} to "
                f"{rows[-1]['epoch']:g}, {confidence} {own_fall:.3g}-fold, while {attacked}: this flatness protects "
                "nothing."
            )


def _fooling_attack(run: Run) -> str | None:
    """The attack that leaves almost nothing in the last epoch with attacks, in words."""
    for row in reversed(run.epochs):
        places = {_place(key)[1] for key in row if "_success_rate" in key}
        left = {
            (place.key(label), robust / clean)
            for place in places
            for label, robust in _left_by_attacks(row, place).items()
            if (clean := row.get(place.key(f"{label}_{keys.CLEAN_ACCURACY}"), 0)) > 0
        }
        if left:
            label, share = min(left, key=lambda pair: (pair[1], pair[0]))
            words = f"{label} leaves {share:.0%} of the clean accuracy in epoch {row['epoch']:g}"
            return words if share < _FOOLED else None
    return None


def _left_by_attacks(row: Row, place: _Place) -> dict[str, float]:
    """Robust accuracy by label; those of a curve over epsilon, at radii of their own, have no success rate."""
    labels = {
        name.removesuffix(f"_{keys.SUCCESS_RATE}")
        for name, where in (_place(key) for key in row)
        if where == place and name.endswith(f"_{keys.SUCCESS_RATE}")
    }
    robust = {label: place.key(f"{label}_{keys.ROBUST_ACCURACY}") for label in sorted(labels)}
    return {label: row[key] for label, key in robust.items() if key in row}


def _reasons_by_values(run: Run, place: _Place, row: Row) -> str:
    """Which rules fire for the signals of an epoch; what an expensive rule has found holds until it runs again."""
    earlier = [one for one in run.epochs if one["epoch"] <= row["epoch"]]
    values = {}
    for name in MASKING_RULES:
        rows = earlier if keys.masking_key(name) in keys.EXPENSIVE_MASKING_KEYS else [row]
        found = [one[place.key(name)] for one in rows if place.key(name) in one]
        if found:
            values[name] = found[-1]
    reasons = masking_reasons(values, _masking_samples(run.config))
    return f"By what was logged: {' '.join(reasons)}" if reasons else "The values that were logged do not say why."


def _masking_samples(config: Mapping[str, object]) -> int:
    found = [value for name, value in config.items() if name.rpartition(".")[2] == "masking_samples"]
    return next((value for value in found if isinstance(value, int) and value > 0), DIAGNOSED_SAMPLES)


def _above_zero(run: Run, name: str) -> Iterator[tuple[str, list[Row]]]:
    for place in _places(run, name):
        rows = [row for row in run.epochs if row.get(place.key(name), 0) > 0]
        if rows:
            yield place.key(name), rows


def _places(run: Run, name: str) -> list[_Place]:
    """Where a value of that name was logged, in validation and test, of each dataloader."""
    found = [_place(key) for key in logged(run.epochs)]
    places = [place for own_name, place in found if own_name == name and place.group]
    return [place for place in places if _is_ours(name, place, found)]


def _is_ours(name: str, place: _Place, found: Sequence[tuple[str, _Place]]) -> bool:
    """Whether a monitor has logged it: other groups than the usual one hold its other values too."""
    usual = _DOCUMENTED.get(name)
    if usual is None or place.group.removeprefix("test_") == usual:
        return True
    return any(where == place and other != name and _DOCUMENTED.get(other) == usual for other, where in found)


def _place(key: str) -> tuple[str, _Place]:
    """Take a key apart into its name and where it was logged."""
    group, _, rest = key.partition("/")
    name, slash, loader = rest.partition("/")
    return name, _Place(group, slash + loader)


def _largest(rows: Sequence[Row], key: str) -> str:
    return f"{100 * max(row[key] for row in rows):.2g}%"


def _when(rows: Sequence[Row]) -> str:
    return in_epochs(row["epoch"] for row in rows)
