"""The keywords that say what an attacker may do."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_flatness.attacks import Norm, ThreatModel
from lightning_flatness.attacks.threat import PerChannel
from lightning_flatness.functional._checks import check_radii
from lightning_flatness.tracking import keys

_TELLING_BATCH = 8
"""Fewest samples that show how far values reach."""
_DEFAULT = ThreatModel()
Radius = PerChannel | str
"""A number, one per channel, or a fraction such as ``"8/255"``, which YAML cannot write as a number."""


def resolve_threat(
    threat: ThreatModel | None,
    epsilon: Radius | None,
    norm: Norm,
    lower: PerChannel | None,
    upper: PerChannel | None,
    mean: PerChannel | None,
    std: PerChannel | None,
) -> ThreatModel:
    """Threat model of keywords, or the one that is given; of neither an epsilon nor that, the usual epsilon.

    Raises:
        ValueError: if both are given, or epsilon is 0 or as large as the valid range.
    """
    if threat is not None and epsilon is not None:
        raise ValueError(f"Pass either `epsilon` or `threat`, got epsilon={epsilon} and threat={threat}.")
    if threat is not None:
        _check_alone(threat, {"norm": norm, "lower": lower, "upper": upper, "mean": mean, "std": std})
    else:
        epsilon = _DEFAULT.epsilon if epsilon is None else epsilon
        radius = _fraction("epsilon", epsilon) if isinstance(epsilon, str) else epsilon
        _check_positive(radius)
        threat = ThreatModel(norm, radius, lower, upper, mean, std)
    _check_positive(threat.epsilon)
    check_below_range(threat, threat.largest_epsilon, name="epsilon")
    return threat


def check_below_range(threat: ThreatModel, radius: float, *, name: str) -> None:
    """Raise ``ValueError`` where a ball in linf reaches from one end of the valid range to the other."""
    if threat.norm == "linf" and threat.lower is not None and threat.upper is not None:
        width = max(_numbers(threat.upper)) - min(_numbers(threat.lower))
        if radius >= width:
            raise ValueError(
                f"`{name}` must be < {width:g}, the width of the valid range, got {radius:g}; "
                "it is in the data's own units, 8 / 255 for example."
            )


def lengths(name: str, values: Sequence[float | str]) -> list[float]:
    """Numbers, some of which may be written as fractions.

    Raises:
        ValueError: if they are no sequence, or one is no number.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"`{name}` must be a list of numbers or fractions like '8/255', got {values!r}.")
    return [_fraction(name, value) if isinstance(value, str) else value for value in values]


def named_radii(values: Sequence[float | str]) -> dict[str, float]:
    """Radii by their label in keys.

    Raises:
        ValueError: if there is none, one is not positive and finite, or two have the same label.
    """
    radii = lengths("radii", values)
    check_radii(radii)
    named = {keys.radius_label(radius): radius for radius in radii}
    if len(named) < len(radii):
        raise ValueError(f"`radii` must differ in their first digits, which are in the keys, got {list(radii)}.")
    return named


def _check_alone(threat: ThreatModel, keywords: Mapping[str, object]) -> None:
    for name, value in keywords.items():
        if value != getattr(_DEFAULT, name):
            raise ValueError(f"`{name}` is a part of `threat`, got {name}={value!r} and {threat}; set it there.")


def _check_positive(epsilon: PerChannel) -> None:
    if min(_numbers(epsilon)) <= 0:
        raise ValueError(f"`epsilon` must be > 0, got {epsilon}.")


def warn_if_normalised_twice(threat: ThreatModel, inputs: Tensor) -> None:
    """Say that inputs whose normalisation is declared look as if nobody had normalised them.

    Args:
        threat: declares range and normalisation.
        inputs: of a whole batch.
    """
    lower, upper = _numbers(threat.lower), _numbers(threat.upper)
    if (threat.mean is None and threat.std is None) or not (lower and upper) or len(inputs) < _TELLING_BATCH:
        return
    low, high = (value.item() for value in threat.in_data_units(inputs).aminmax())
    if high - low < (max(upper) - min(lower)) / 2:
        rank_zero_warn(
            f"With the declared `mean` and `std`, the first inputs lie in [{low:.3g}, {high:.3g}], a small part of "
            f"[{min(lower):g}, {max(upper):g}]; leave them out if the data module does not normalise."
        )


def _fraction(name: str, text: str) -> float:
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"`{name}` must be a number or a fraction like '8/255', got {text!r}.") from None


def _numbers(value: PerChannel | None) -> Sequence[float]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) else (value,)
