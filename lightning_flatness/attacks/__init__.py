"""Attacks as functions: a threat model in, perturbed inputs and successes out."""

from lightning_flatness.attacks.adapter import TorchattacksAttack, from_torchattacks, torchattacks_names
from lightning_flatness.attacks.adaptive import AdaptiveAttack, Budget
from lightning_flatness.attacks.apgd import apgd
from lightning_flatness.attacks.pgd import pgd
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import Norm, ThreatModel

__all__ = [  # noqa: RUF022 - grouped
    # what an attacker may do
    "Norm",
    "ThreatModel",
    # attacks
    "AdaptiveAttack",
    "Budget",
    "apgd",
    "pgd",
    # those of torchattacks
    "TorchattacksAttack",
    "from_torchattacks",
    "torchattacks_names",
    # what they return
    "AttackResult",
]
