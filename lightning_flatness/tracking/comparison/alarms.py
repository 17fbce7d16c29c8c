"""Reasons not to believe what a run seems to show, in words."""

from collections.abc import Iterator, Mapping, Sequence

from lightning_flatness.attacks.masking_rules import DIAGNOSED_SAMPLES, MASKING_RULES, masking_reasons
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.comparison._epoch_words import in_epochs
from lightning_flatness.tracking.comparison._places import Place, apart, name_of, places_of
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
    name_of(key)
    for key in (
        keys.ALARM,
        keys.MASKING_REASONS,
        keys.VIOLATION_RATE,
        keys.LIPSCHITZ_VIOLATION_RATE,
        keys.LIPSCHITZ_CERTIFIED,
    )
)
_WORST = f"{keys.WORST_CASE}_{keys.ROBUST_ACCURACY}"


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
    rules = (_masked_gradients, _fooled_by_margin, _flat_by_confidence, _broken_bounds, _broken_certificates)
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
    return list(_fooled_attacks(run))


def _masked_gradients(run: Run) -> Iterator[str]:
    """The alarm that the run itself has logged, when it was on, and why."""
    for place in places_of(run, _ALARM):
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


def _broken_bounds(run: Run) -> Iterator[str]:
    """A bound that a loss has passed."""
    for key, rows in _above_zero(run, _VIOLATIONS):
        yield (
            f"{key} was up to {_largest(rows, key)} ({_when(rows)}): the loss of attacked samples rose by more "
            "than the bound allows, which cannot be; the bound or its constant is wrong."
        )


def _broken_certificates(run: Run) -> Iterator[str]:
    """A Lipschitz constant called certified that features have passed; an estimate is too small by its nature."""
    for place in places_of(run, _PASSED):
        key = place.key(_PASSED)
        rows = [row for row in run.epochs if row.get(key, 0) > 0 and place.key(_CERTIFIED) in row]
        if rows:
            yield (
                f"{key} was up to {_largest(rows, key)} ({_when(rows)}): features moved farther than the constant "
                "allows; it is called certified and is not."
            )


def _fooled_attacks(run: Run) -> Iterator[str]:
    """An attack that leaves far more robust accuracy than another one of the same samples."""
    for place in places_of(run, _WORST):
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


def _fooled_by_margin(run: Run) -> Iterator[str]:
    """PGD on the cross-entropy that finds far less than PGD on the margin, with the head as it was trained."""
    names = [keys.scaling_key(f"robust_accuracy_{loss}", 1.0) for loss in ("cross_entropy", "margin")]
    plain, margin = (name_of(name) for name in names)
    for place in places_of(run, plain):
        rows = [row for row in run.epochs if place.key(plain) in row and place.key(margin) in row]
        if rows and rows[-1][place.key(plain)] - rows[-1][place.key(margin)] > _FAR_APART:
            yield (
                f"In epoch {rows[-1]['epoch']:g}, with the head as it was trained, PGD on the "
                f"cross-entropy leaves {rows[-1][place.key(plain)]:.0%} robust accuracy and PGD on the margin "
                f"{rows[-1][place.key(margin)]:.0%}: what an attack on the cross-entropy leaves is no evidence."
            )


def _flat_by_confidence(run: Run) -> Iterator[str]:
    """Flatness that came with confidence alone, of a model that attacks fool."""
    name, factor = (name_of(key) for key in (keys.RELATIVE_FLATNESS, keys.CONFIDENCE_FACTOR))
    for place in places_of(run, name):
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
        places = {apart(key)[1] for key in row if "_success_rate" in key}
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


def _left_by_attacks(row: Row, place: Place) -> dict[str, float]:
    """Robust accuracy by label; those of a curve over epsilon, at radii of their own, have no success rate."""
    labels = {
        name.removesuffix(f"_{keys.SUCCESS_RATE}")
        for name, where in (apart(key) for key in row)
        if where == place and name.endswith(f"_{keys.SUCCESS_RATE}")
    }
    robust = {label: place.key(f"{label}_{keys.ROBUST_ACCURACY}") for label in sorted(labels)}
    return {label: row[key] for label, key in robust.items() if key in row}


def _reasons_by_values(run: Run, place: Place, row: Row) -> str:
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
    for place in places_of(run, name):
        rows = [row for row in run.epochs if row.get(place.key(name), 0) > 0]
        if rows:
            yield place.key(name), rows


def _largest(rows: Sequence[Row], key: str) -> str:
    return f"{100 * max(row[key] for row in rows):.2g}%"


def _when(rows: Sequence[Row]) -> str:
    return in_epochs(row["epoch"] for row in rows)
