"""What a trajectory adds to the attack it follows; ``pytest tests/benchmarks --benchmark-enable -s``."""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import pytest
from torch import Tensor, nn

from lightning_flatness.attacks import ThreatModel, pgd, trajectory
from tests.attacks.models import digit_cnn, held_out
from tests.benchmarks.measuring import print_table

ROUNDS = 15
STEPS = 20
EPSILON = 0.3
MOST_OVERHEAD = 1.15
ENOUGH = 256
"""Digits whose passes take longer than the calls of functions beside them, on a network this small."""


def attack(model: nn.Sequential, inputs: Tensor, target: Tensor) -> None:
    settings: Any = {"steps": STEPS, "step_size": 2.5 * EPSILON / STEPS}
    pgd(model, inputs, target, ThreatModel(epsilon=EPSILON), random_start=False, stop_when_fooled=False, **settings)


def follow(path: Any, model: nn.Sequential, inputs: Tensor, target: Tensor) -> None:
    head: Any = model[-1]
    trajectory(model, head, inputs, target, ThreatModel(epsilon=EPSILON), path=path, steps=STEPS)


WAYS: dict[str, Callable[[nn.Sequential, Tensor, Tensor], None]] = {
    "PGD-20": attack,
    "trajectory of it": partial(follow, "attack"),
    "line to noise, 11 points": partial(follow, "noise"),
    "blur, 6 points": partial(follow, "blur"),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [64, 256])
def test_trajectory_costs_little_more_than_its_attack(count: int, benchmark: Any) -> None:
    enabled = benchmark.enabled
    model: Any = digit_cnn(5 if enabled else 1)
    inputs, target = held_out(count if enabled else 4)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}

    def one_round() -> None:
        # Alternating, so that whatever else the machine does hits all alike.
        for name, way in WAYS.items():
            start = process_time()
            way(model, inputs, target)
            seconds[name].append(process_time() - start)

    one_round()
    benchmark.pedantic(one_round, rounds=ROUNDS if enabled else 1)
    rows, ratios = [], {}
    for name, times in seconds.items():
        ratios[name] = sorted(own / first for own, first in zip(times, seconds["PGD-20"], strict=True))
        ends = f"{ratios[name][0]:.2f}-{ratios[name][-1]:.2f}"
        rows.append((name, f"{1e3 * median(times):.0f}", f"{median(ratios[name]):.2f}x", ends))
    print_table(f"{len(inputs)} digits", ("path", "CPU ms", "of PGD-20", "range"), rows)
    if enabled and count >= ENOUGH:
        assert median(ratios["trajectory of it"]) <= MOST_OVERHEAD
