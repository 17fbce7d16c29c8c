"""A curve by bisection against one attack per epsilon; ``pytest tests/benchmarks --benchmark-enable -s``."""

from functools import partial
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_flatness.attacks import AdaptiveAttack, ThreatModel, first_fooling_epsilon
from tests.attacks.models import digit_cnn, held_out

from .measuring import print_table

ROUNDS = 5
CASES = {
    "standard": (0.0, [0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16]),
    "adversarial": (0.2, [0.05, 0.1, 0.15, 0.2, 0.22, 0.24, 0.26, 0.3]),
}
fast = partial(AdaptiveAttack, budget="fast")


class Curve(NamedTuple):
    index: Tensor
    forwards: int
    backwards: int


def one_by_one(model: nn.Module, inputs: Tensor, target: Tensor, clean_logits: Tensor, epsilons: list[float]) -> Curve:
    results = [fast(ThreatModel(epsilon=e))(model, inputs, target, clean_logits=clean_logits) for e in epsilons]
    standing = (~torch.stack([result.success for result in results]).cummax(0).values).sum(0)
    return Curve(standing, sum(result.forwards for result in results), sum(result.backwards for result in results))


def ascending(model: nn.Module, inputs: Tensor, target: Tensor, clean_logits: Tensor, epsilons: list[float]) -> Curve:
    """One by one, without the samples that are fooled already."""
    index, forwards, backwards = torch.full_like(target, len(epsilons)), 0, 0
    rows = torch.arange(len(target))
    for k, epsilon in enumerate(epsilons):
        attack = fast(ThreatModel(epsilon=epsilon))
        result = attack(model, inputs[rows], target[rows], clean_logits=clean_logits[rows])
        forwards, backwards = forwards + result.forwards, backwards + result.backwards
        index[rows[result.success]] = k
        rows = rows[~result.success]
    return Curve(index, forwards, backwards)


def bisection(model: nn.Module, inputs: Tensor, target: Tensor, clean_logits: Tensor, epsilons: list[float]) -> Curve:
    found = first_fooling_epsilon(fast, model, inputs, target, ThreatModel(), epsilons, clean_logits=clean_logits)
    return Curve(found.index, found.forwards, found.backwards)


WAYS = {"one by one": one_by_one, "ascending": ascending, "bisection": bisection}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_curve(case: str, benchmark: Any) -> None:
    trained_on, epsilons = CASES[case]
    enabled = benchmark.enabled
    model = digit_cnn(8 if enabled else 1, trained_on if enabled else 0.0)
    inputs, target = held_out(500 if enabled else 10)
    with torch.no_grad():
        clean_logits = model(inputs)
    curves: dict[str, Curve] = {}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}

    def one_round() -> None:
        # Alternating, so that whatever else the machine does hits all alike.
        for name, way in WAYS.items():
            start = process_time()
            curves[name] = way(model, inputs, target, clean_logits, epsilons)
            seconds[name].append(process_time() - start)

    benchmark.pedantic(one_round, rounds=ROUNDS if enabled else 1)
    _show(case, curves, seconds, epsilons)
    assert all(len(curve.index) == len(inputs) for curve in curves.values())


def _show(case: str, curves: dict[str, Curve], seconds: dict[str, list[float]], epsilons: list[float]) -> None:
    reference = "one by one"
    count = len(curves[reference].index)
    rows = []
    for name, curve in curves.items():
        ratios = [theirs / own for theirs, own in zip(seconds[reference], seconds[name], strict=True)]
        fooled = [int((curve.index <= k).sum()) for k in range(len(epsilons))]
        rows.append((
            name,
            f"{(curve.forwards + curve.backwards) / count:.1f}",
            f"{median(ratios):.2f}x",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            ", ".join(map(str, fooled)),
        ))
    title = f"{case}, {count} digits, linf {', '.join(map(str, epsilons))}"
    print_table(title, ("way", "passes", "speed-up", "range", "fooled at or before each"), rows)
