"""CPU time of a metric on several processes: ``python -m tests.benchmarks.processes 4`` prints milliseconds as JSON.

One interpreter imports everything and forks the processes before any thread was started. They talk over gloo.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import distributed

from lightning_flatness.metrics import RelativeFlatness

from .measuring import make_head

SIZE = (4096, 100, 512)
ROUNDS = 15


def rank(index: int, processes: int, folder: Path, results: Any) -> None:
    """Update with a share of the samples and compute, which adds up the states of all; every round anew."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=index, world_size=processes)
    head = make_head(SIZE[0] // processes, *SIZE[1:])
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        metric = RelativeFlatness()
        start = process_time()
        metric.update(*head)
        updated = process_time()
        metric.compute()
        times.append((updated - start, process_time() - updated))
    results.put([1e3 * median(column) for column in zip(*times, strict=True)])
    distributed.destroy_process_group()


def milliseconds(processes: int) -> list[float]:
    """Of ``update`` and of ``compute``, on the slowest process."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=rank, args=(i, processes, Path(folder), results)) for i in range(processes)]
        for process in ranks:
            process.start()
        found = [results.get(timeout=120) for _ in ranks]
        for process in ranks:
            process.join()
    return [max(column) for column in zip(*found, strict=True)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([milliseconds(int(argument)) for argument in sys.argv[1:]]) + "\n")
