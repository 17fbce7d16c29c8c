"""How the time of the closed forms grows with classes, features, samples and processes."""

import json
import os
import subprocess
import sys
from math import log
from pathlib import Path

import pytest
import torch

from lightning_flatness.functional import decision_radius, flatness_factors, loss_increase_bound
from lightning_flatness.metrics import RelativeFlatness

from .measuring import CPU_TIME, alternate, make_head, print_table
from .processes import SIZE

ROOT = Path(__file__).parents[2]
TITLE = (
    "A head with {samples} samples, {classes} classes, {features} features, one of them varied; CPU time, one thread"
)
COLUMNS = ("what grows", "quantity", "smallest ms", "largest ms", "slope", "slope at the end")
BASE = {"samples": 256, "classes": 100, "features": 512}
TITLE = TITLE.format(**BASE)
SIZES = {
    "samples": (256, 1024, 4096, 16384),
    "classes": (10, 100, 1000, 10_000),
    "features": (64, 512, 4096, 16384),
}
MOST = 1.5
"""Slope at the end that a linear method stays below, although the largest problem leaves the caches."""

pytestmark = CPU_TIME


def _quantities(sizes):
    features, weight, logits, target = head = make_head(*sizes.values())
    metric, radius = RelativeFlatness(), 0.1 * features.norm(dim=1)
    return {
        "flatness_factors": lambda: flatness_factors(features, weight, logits),
        "RelativeFlatness.update": lambda: metric.update(*head),
        "decision_radius": lambda: decision_radius(logits, target, weight),
        "loss_increase_bound": lambda: loss_increase_bound(logits, target, weight, radius),
    }


def _slope(sizes, seconds):
    return log(seconds[-1] / seconds[0]) / log(sizes[-1] / sizes[0])


@pytest.mark.parametrize("axis", SIZES)
@torch.inference_mode()
def test_growth(benchmark, report, axis):
    sizes = SIZES[axis] if benchmark.enabled else (4, 8)
    made = {size: _quantities(BASE | {axis: size}) for size in sizes}
    names = list(made[sizes[0]])
    seconds = alternate(benchmark, {f"{name} {size}": made[size][name] for size in sizes for name in names})
    assert len(seconds) == len(names) * len(sizes)
    if not benchmark.enabled:
        return
    ends = {}
    for name in names:
        times = [seconds[f"{name} {size}"] for size in sizes]
        ends[name] = _slope(sizes[-2:], times[-2:])
        report(
            f"{axis} {sizes[0]} to {sizes[-1]}",
            name,
            f"{1e3 * times[0]:.2f}",
            f"{1e3 * times[-1]:.1f}",
            f"{_slope(sizes, times):.2f}",
            f"{ends[name]:.2f}",
        )
    assert max(ends.values()) < MOST, ends


@pytest.mark.slow
def test_processes(benchmark):
    counts = ("1", "2", "4") if benchmark.enabled else ("2",)
    command = [sys.executable, "-m", "tests.benchmarks.processes", *counts]
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    finished = benchmark.pedantic(
        lambda: subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    )
    rows = [
        (count, str(SIZE[0] // int(count)), f"{update:.1f}", f"{compute:.2f}")
        for count, (update, compute) in zip(counts, json.loads(finished.stdout.splitlines()[-1]), strict=True)
    ]
    assert all(float(cell) > 0 for row in rows for cell in row)
    if benchmark.enabled:
        title = f"RelativeFlatness of {SIZE[0]} samples, {SIZE[1]} classes, over gloo; CPU ms of the slowest process"
        print_table(title, ("processes", "samples each", "update", "compute, with synchronisation"), rows)
