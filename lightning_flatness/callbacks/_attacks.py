"""The attacks of a monitor, made from what its users write."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from re import sub
from typing import Any

from lightning_flatness.attacks import (
    AdaptiveAttack,
    Attack,
    AttackResult,
    LogitsFunction,
    ThreatModel,
    TorchattacksAttack,
    from_torchattacks,
    pgd,
)
from lightning_flatness.callbacks._attack_record import AttackedBatch
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


def run_attack(label: str, attack: Attack, logits_fn: LogitsFunction, batch: AttackedBatch) -> AttackResult:
    """Attack one batch; an error says which attack it comes from.

    Args:
        label: of the attack.
        attack: to run.
        logits_fn: maps inputs to logits.
        batch: samples, and what the model says of them.

    Raises:
        ValueError: if the attack, a user's own, returns something else than a result.
    """
    with _named(label):
        result: object = attack(
            logits_fn, batch.inputs, batch.target, generator=batch.generator, clean_logits=batch.clean_logits
        )
        if not isinstance(result, AttackResult):
            raise ValueError(f"An attack must return an `AttackResult`, got {type(result).__name__}.")
        return result


def try_out(
    attacks: Mapping[str, Attack], threat: ThreatModel, logits_fn: LogitsFunction, batch: AttackedBatch
) -> None:
    """Run every attack as cheaply as it can, to see that it works on this model and data.

    Args:
        attacks: by label.
        threat: the ball and the valid range.
        logits_fn: maps inputs to logits.
        batch: a few samples.
    """
    pgd(logits_fn, batch.inputs, batch.target, threat, steps=1, clean_logits=batch.clean_logits)
    # An untrained model may be wrong everywhere, and wrong samples are not attacked.
    known = batch._replace(target=batch.clean_logits.argmax(1))
    for label, attack in attacks.items():
        if isinstance(attack, AdaptiveAttack | TorchattacksAttack):
            with _named(label):
                attack.check(logits_fn, known.inputs, known.target)
        else:
            run_attack(label, attack, logits_fn, known)


@contextmanager
def _named(label: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"In the attack {label!r}.")
        raise
