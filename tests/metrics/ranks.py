"""Run metrics on several processes that talk over gloo.

One process forks the ranks of one job after the other, before any thread was started.
"""

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import distributed

from lightning_flatness.functional import TrajectoryPoints
from lightning_flatness.metrics import (
    AttackSuccessRate,
    AttackTrajectory,
    ConfidenceFlatness,
    HeadScaling,
    HeadTopEigenvalue,
    LocalRobustnessBound,
    LossBoundCheck,
    RelativeFlatness,
    RobustAccuracy,
    RobustAccuracyCurve,
)
from tests.processes import finished, start

METRICS = {
    metric.__name__: metric
    for metric in (
        AttackSuccessRate,
        AttackTrajectory,
        ConfidenceFlatness,
        HeadScaling,
        HeadTopEigenvalue,
        LocalRobustnessBound,
        LossBoundCheck,
        RelativeFlatness,
        RobustAccuracy,
        RobustAccuracyCurve,
    )
}
SECONDS = 30


def results_of_ranks(jobs: dict[str, dict[str, Any]], folder: Path) -> dict[str, list[Any]]:
    """Run jobs, and return what :func:`run` does for each of them."""
    torch.save(jobs, folder / "jobs.pt")
    log = folder / "log"
    assert finished(start(run_all, folder, output=log)) == 0, log.read_text()
    return torch.load(folder / "results.pt")


def rank(job: dict[str, Any], index: int, folder: Path) -> None:
    """Update with the batches of one rank and compute, as often as the job says.

    A metric with ``dist_sync_on_step`` is called with each batch first, and the results are those of the calls too.
    """
    batches = job["batches"][index]
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=index,
        world_size=len(job["batches"]),
        timeout=timedelta(seconds=SECONDS),
    )
    metric = METRICS[job["metric"]](**job["settings"])
    results = [metric(**batch) for batch in batches] if metric.dist_sync_on_step else []
    for _ in range(job["rounds"]):
        for batch in batches:
            metric.update(**batch)
        results.append(metric.compute())
    torch.save(results, folder / f"{index}.pt")
    distributed.destroy_process_group()


def run(job: dict[str, Any]) -> list[Any]:
    """Results of each rank, or its exit code; None for a rank that hung."""
    with tempfile.TemporaryDirectory() as name:
        context, folder = multiprocessing.get_context("fork"), Path(name)
        ranks = [context.Process(target=rank, args=(job, index, folder)) for index in range(len(job["batches"]))]
        for process in ranks:
            process.start()
        end = monotonic() + SECONDS
        for process in ranks:
            process.join(max(0.0, end - monotonic()))
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
            process.join()
        return [torch.load(folder / f"{index}.pt") if code == 0 else code for index, code in enumerate(codes)]


def run_all(folder: Path) -> None:
    """Run the jobs in ``folder``, and leave their results there."""
    torch.serialization.add_safe_globals([TrajectoryPoints])
    results = {name: run(job) for name, job in torch.load(folder / "jobs.pt").items()}
    torch.save(results, folder / "results.pt")
