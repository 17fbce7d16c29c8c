"""Time, memory and exact values of alternatives, side by side in one process."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

CPU_TIME = pytest.mark.benchmark(timer=process_time)
"""One thread's CPU time is its wall time on an idle machine, and hardly changes on a busy one."""

_LEAST_SECONDS = 0.02  # a fast function is repeated for as long as this, so that its caches are warm
_ROUNDS = (3, 25)
_BUDGET = 20.0  # seconds for all rounds


def alternate(benchmark: BenchmarkFixture, functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each function; in every round all are timed, one after another.

    The first one is also what pytest-benchmark reports. Without benchmarks, each function runs once or twice.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}

    def one_round() -> None:
        for name, function in functions.items():
            times[name].append(_seconds(function, _LEAST_SECONDS if benchmark.enabled else 0.0))

    rounds = 1
    if benchmark.enabled:
        start = process_time()
        one_round()
        rounds = min(max(round(_BUDGET / (process_time() - start)), _ROUNDS[0]), _ROUNDS[1])
        times.update((name, []) for name in functions)  # that round was the warm-up
    benchmark.pedantic(next(iter(functions.values())), setup=one_round, rounds=rounds)
    medians = {name: median(seconds) for name, seconds in times.items()}
    benchmark.extra_info.update(medians)
    return medians


def _seconds(function: Callable[[], object], at_least: float) -> float:
    times: list[float] = []
    while not times or sum(times) < at_least:
        start = process_time()
        function()
        times.append(process_time() - start)
    return median(times)


def extra_memory(function: Callable[[], object]) -> float:
    """MiB of tensors on the CPU that a call holds at its peak beyond those before, as torch's allocator counts."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes), default=0) / 2**20


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write plain text, columns aligned; also a line of JSON to the file that ``BENCHMARK_TABLES`` names."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (columns, rule, *rows))
    lines = ("  ".join(cells).rstrip() for cells in padded)
    sys.stdout.write("\n".join(["", "", title, *lines, ""]))
    if kept := os.environ.get("BENCHMARK_TABLES"):
        with Path(kept).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"title": title, "columns": columns, "rows": rows}) + "\n")


class HeadData(NamedTuple):
    """One batch at a linear head without bias."""

    features: Tensor
    weight: Tensor
    logits: Tensor
    target: Tensor


def make_head(batch: int, classes: int, dim: int, scale: float = 1.0) -> HeadData:
    """Noisy features around one prototype per class; ``scale`` multiplies the weight and so the confidence."""
    prototypes = torch.randn(classes, dim) / dim**0.5
    target = torch.randint(classes, (batch,))
    features = 8 * prototypes[target] + torch.randn(batch, dim)
    weight = scale * prototypes
    return HeadData(features, weight, linear(features, weight), target)


def defined_neuronwise(head: HeadData) -> Tensor:
    """``‖φ‖² Σ_k p_k ‖w_k − w̄‖²`` term by term in float64."""
    weight = head.weight.double()
    variances = [p @ (weight - p @ weight).square().sum(1) for p in head.logits.double().softmax(1)]
    return head.features.double().square().sum(1) * torch.stack(variances)


def defined_layerwise(head: HeadData) -> Tensor:
    """``‖W‖_F² ‖φ‖² tr H_z`` in float64; the trace is the variance of unit vectors."""
    unit = torch.eye(len(head.weight), dtype=torch.float64)
    return head.weight.double().square().sum() * defined_neuronwise(head._replace(weight=unit))
