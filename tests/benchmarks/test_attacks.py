"""Cost and strength of the attacks beside torchattacks' PGD; ``pytest tests/benchmarks --benchmark-enable -s``."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, AttackResult, ThreatModel, pgd
from tests.attacks.models import digit_cnn, held_out

ROUNDS = 5
CASES = {"standard, eps 0.1": (0.0, 0.1), "adversarial, eps 0.2": (0.2, 0.2), "adversarial, eps 0.25": (0.2, 0.25)}


class Outcome(NamedTuple):
    robust: Tensor
    forwards: float
    backwards: float


def torchattacks_pgd(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> Outcome:
    """The attack, and the two passes that tell what it has done."""
    assert isinstance(threat.epsilon, float)
    attack = torchattacks.PGD(model, eps=threat.epsilon, alpha=threat.epsilon / 8, steps=20)
    with torch.no_grad():
        correct = model(inputs).argmax(1) == target
    x_adv = attack(inputs, target)
    with torch.no_grad():
        return Outcome(correct & (model(x_adv).argmax(1) == target), 22, 20)


def ours(
    attack: Callable[..., AttackResult], model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel
) -> Outcome:
    result = attack(model, inputs, target, threat)
    count = len(inputs)
    return Outcome(result.initially_correct & ~result.success, result.forwards / count, result.backwards / count)


def fixed(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> AttackResult:
    assert isinstance(threat.epsilon, float)
    return pgd(model, inputs, target, threat, steps=20, step_size=threat.epsilon / 8)


def decaying(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> AttackResult:
    return pgd(model, inputs, target, threat, steps=10)


def decaying_bf16(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> AttackResult:
    return pgd(model, inputs, target, threat, steps=10, autocast_dtype=torch.bfloat16)


def fast(model: nn.Module, inputs: Tensor, target: Tensor, threat: ThreatModel) -> AttackResult:
    return AdaptiveAttack(threat, budget="fast")(model, inputs, target)


ATTACKS = {
    "torchattacks PGD-20": torchattacks_pgd,
    "pgd, same steps": partial(ours, fixed),
    "pgd, 10 decaying": partial(ours, decaying),
    "pgd, 10 decaying, bf16": partial(ours, decaying_bf16),
    "fast": partial(ours, fast),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_attacks(case: str, benchmark: Any) -> None:
    trained_on, epsilon = CASES[case]
    enabled = benchmark.enabled
    model = digit_cnn(8 if enabled else 1, trained_on if enabled else 0.0)
    inputs, target = held_out(500 if enabled else 10)
    threat = ThreatModel(epsilon=epsilon)
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ATTACKS}

    def one_round() -> None:
        # Alternating, so that whatever else the machine does hits all alike.
        for name, attack in ATTACKS.items():
            start = process_time()
            outcomes[name] = attack(model, inputs, target, threat)
            seconds[name].append(process_time() - start)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        benchmark.pedantic(one_round, rounds=ROUNDS if enabled else 1)
    finally:
        torch.set_num_threads(threads)
    _show(case, outcomes, seconds)
    assert all(len(outcome.robust) == len(inputs) for outcome in outcomes.values())


def _show(case: str, outcomes: dict[str, Outcome], seconds: dict[str, list[float]]) -> None:
    reference = "torchattacks PGD-20"
    lines = [f"\n{case}", f"{'attack':24} {'robust':>7} {'forwards':>9} {'backwards':>9} {'speed-up':>9}  (range)"]
    for name, outcome in outcomes.items():
        ratios = [theirs / own for theirs, own in zip(seconds[reference], seconds[name], strict=True)]
        lines.append(
            f"{name:24} {outcome.robust.double().mean():7.3f} {outcome.forwards:9.1f} {outcome.backwards:9.1f} "
            f"{median(ratios):8.2f}x  ({min(ratios):.2f}-{max(ratios):.2f})"
        )
    print("\n".join(lines))  # noqa: T201 - the point of a benchmark
