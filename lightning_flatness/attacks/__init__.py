"""Attacks as functions: a threat model in, perturbed inputs and successes out."""

from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._probes import Signal
from lightning_flatness.attacks.adapter import TorchattacksAttack, from_torchattacks, torchattacks_names
from lightning_flatness.attacks.adaptive import AdaptiveAttack, Budget
from lightning_flatness.attacks.apgd import apgd
from lightning_flatness.attacks.curve import Attack, EpsilonCurveResult, first_fooling_epsilon
from lightning_flatness.attacks.head_scaling import ScaledHeadAttack, attack_scaled_head
from lightning_flatness.attacks.masking import MaskingDiagnosis, masking_signals
from lightning_flatness.attacks.masking_rules import MASKING_RULES, MaskingRule, masking_reasons
from lightning_flatness.attacks.pgd import pgd
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import Norm, ThreatModel
from lightning_flatness.attacks.trajectory import PathName, Trajectory, path_positions, trajectory

__all__ = [  # noqa: RUF022 - grouped
    # what an attacker may do
    "Norm",
    "ThreatModel",
    # attacks
    "AdaptiveAttack",
    "Attack",
    "Budget",
    "LogitsFunction",
    "apgd",
    "pgd",
    # those of torchattacks
    "TorchattacksAttack",
    "from_torchattacks",
    "torchattacks_names",
    # over many epsilons
    "first_fooling_epsilon",
    # along paths
    "PathName",
    "path_positions",
    "trajectory",
    # over many scales of the head
    "attack_scaled_head",
    # gradient masking
    "MASKING_RULES",
    "MaskingRule",
    "masking_reasons",
    "masking_signals",
    # what they return
    "AttackResult",
    "EpsilonCurveResult",
    "MaskingDiagnosis",
    "ScaledHeadAttack",
    "Signal",
    "Trajectory",
]
