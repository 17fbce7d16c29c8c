"""The attacks of a monitor, made from what its users write."""

import sys
from collections.abc import Callable, Mapping
from re import sub
from typing import Any

from lightning_flatness.attacks import AdaptiveAttack, Attack, AttackResult, ThreatModel, from_torchattacks
from lightning_flatness.tracking import keys

AttackSettings = Mapping[str, Any] | Callable[..., AttackResult] | None
"""An attack, keywords of a torchattacks attack, or None for no keywords."""


def build_attacks(
    threat: ThreatModel, default: AdaptiveAttack | None, attacks: Mapping[str, AttackSettings] | None
) -> dict[str, Attack]:
    """Label → attack: the default one, and those that are named.

    Args:
        threat: the ball and the valid range.
        default: labelled by its threat model; None for none.
        attacks: name → settings. The name is that of a torchattacks attack, unless the settings are an attack, or their
            entry ``attack`` says which one it is.

    Raises:
        ValueError: if there is no attack, or two have the same label.
    """
    if attacks is not None and not isinstance(attacks, Mapping):
        raise ValueError(f"`attacks` must map names to keywords, e.g. {{'PGD': {{'steps': 10}}}}, got {attacks!r}.")
    built: dict[str, Attack] = {}
    if default is not None:
        built[keys.threat_label(threat.norm, threat.epsilon)] = default
    for name, settings in (attacks or {}).items():
        label = sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if not label or label in {*built, keys.WORST_CASE}:
            raise ValueError(f"`attacks` must have labels of their own, got {name!r}.")
        built[label] = _build(name, settings, threat)
    if not built:
        raise ValueError("`attacks` must hold at least one attack with budget=None.")
    return built


def _build(name: str, settings: AttackSettings, threat: ThreatModel) -> Attack:
    if settings is None or isinstance(settings, Mapping):
        keywords = dict(settings or {})
        if "eps" in keywords:
            raise ValueError(f"`eps` of {name} is that of the monitor, epsilon={threat.epsilon}; leave it out.")
        return from_torchattacks(keywords.pop("attack", name), threat, **keywords)
    if _is_foreign(settings):
        return from_torchattacks(settings, threat)
    if not callable(settings):
        raise ValueError(f"`attacks` must hold keywords, attacks or None, got {settings!r} for {name!r}.")
    return settings


def _is_foreign(settings: object) -> bool:
    """Whether something is an attack of torchattacks, or a class of them, without importing it."""
    module = sys.modules.get("torchattacks.attack")
    if module is None:
        return False
    return isinstance(settings, module.Attack) or (isinstance(settings, type) and issubclass(settings, module.Attack))
