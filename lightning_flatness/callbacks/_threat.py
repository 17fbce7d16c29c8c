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
        ValueError: if neither or both are given, or epsilon is 0.
    """
    if (threat is None) == (epsilon is None):
        raise ValueError(f"Pass either `epsilon` or `threat`, got epsilon={epsilon} and threat={threat}.")
    if threat is None:
        assert epsilon is not None
        threat = ThreatModel(norm, epsilon, lower, upper, mean, std)
    smallest = min(threat.epsilon) if isinstance(threat.epsilon, Sequence) else threat.epsilon
    if smallest <= 0:
        raise ValueError(f"`epsilon` must be > 0, got {threat.epsilon}.")
    return threat
