"""The keywords that say what an attacker may do."""

from collections.abc import Sequence

from lightning_flatness.attacks import Norm, ThreatModel

PerChannel = float | Sequence[float]


def resolve_threat(
    threat: ThreatModel | None,
    epsilon: PerChannel | None,
    norm: Norm,
    lower: PerChannel | None,
    upper: PerChannel | None,
    mean: PerChannel | None,
    std: PerChannel | None,
) -> ThreatModel:
    """Threat model of keywords, or the one that is given.

    Raises:
        ValueError: if neither or both are given, or epsilon is 0 or as large as the valid range.
    """
    if (threat is None) == (epsilon is None):
        raise ValueError(f"Pass either `epsilon` or `threat`, got epsilon={epsilon} and threat={threat}.")
    if threat is None:
        assert epsilon is not None
        threat = ThreatModel(norm, epsilon, lower, upper, mean, std)
    if min(_numbers(threat.epsilon)) <= 0:
        raise ValueError(f"`epsilon` must be > 0, got {threat.epsilon}.")
    reach = max(_numbers(threat.epsilon))
    if threat.norm == "linf" and threat.lower is not None and threat.upper is not None:
        width = max(_numbers(threat.upper)) - min(_numbers(threat.lower))
        if reach >= width:
            raise ValueError(
                f"`epsilon` must be < {width:g}, the width of the valid range, got {threat.epsilon}; "
                "it is in the data's own units, 8 / 255 for example."
            )
    return threat


def _numbers(value: PerChannel) -> Sequence[float]:
    return value if isinstance(value, Sequence) else (value,)
