"""Several processes see what one would see."""

import pytest
import torch

from tests.metrics.problems import head_inputs, of_samples, scalars, without
from tests.metrics.ranks import METRICS, results_of_ranks

pytestmark = pytest.mark.slow


def batches(*rows):
    return [of_samples(head_inputs(), list(range(start, stop))) for start, stop in rows]


def ignored(batch):
    return batch | {"target": torch.full_like(batch["target"], -100)}


SHARES = {
    "two": [batches((0, 15), (15, 20)), batches((20, 30), (30, 40))],
    "three": [batches((0, 3)), batches((3, 4), (4, 20), (20, 29)), batches((29, 39), (39, 40))],
    "unequal": [batches((0, 3), (3, 4), (4, 20), (20, 29)), batches((29, 40))],
    "last all ignored": [batches((0, 25)), list(map(ignored, batches((25, 30), (30, 40))))],
    "first of three all ignored": [list(map(ignored, batches((0, 5)))), batches((5, 25)), batches((25, 40))],
    "an empty batch": [batches((0, 40)), batches((40, 40))],
    "no batch": [batches((0, 25), (25, 40)), []],
    "all ignored": [list(map(ignored, batches((0, 25)))), list(map(ignored, batches((25, 40))))],
}
SETTINGS = {
    "flatness": ("RelativeFlatness", {}),
    "flatness, maxeig": ("RelativeFlatness", {"variant": "maxeig", "include_bias": True, "loss": "focal"}),
    "eigenvalue": ("HeadTopEigenvalue", {}),
}
JOBS = [(share, setting) for share in SHARES for setting in ("flatness", "eigenvalue")]
JOBS += [(share, "flatness, maxeig") for share in ("two", "three", "last all ignored")]


def job(share, setting):
    metric, settings = SETTINGS[setting]
    needless = ("weight", "bias") if metric == "HeadTopEigenvalue" else ()
    parts = [[without(batch, *needless) for batch in part] for part in SHARES[share]]
    # A rank that adds nothing does not compute again but returns its last result: the others would wait for it.
    return {"metric": metric, "settings": settings, "batches": parts, "rounds": 2 if all(parts) else 1}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {f"{share}/{setting}": job(share, setting) for share, setting in JOBS}
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("share", "setting"), JOBS)
def test_every_rank_computes_what_one_process_would(share, setting, results):
    description = job(share, setting)
    metric = METRICS[description["metric"]](**description["settings"])
    for part in description["batches"]:
        for batch in part:
            metric.update(**batch)
    expected = as_dict(metric.compute())
    for rank, result in enumerate(results[f"{share}/{setting}"]):
        assert isinstance(result, list), f"rank {rank} ended with code {result}"
        assert as_dict(result[0]) == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True), f"rank {rank}"


@pytest.mark.parametrize("setting", ["flatness", "eigenvalue"])
@pytest.mark.parametrize("share", ["two", "three"])
def test_ranks_go_on_after_computing(share, setting, results):
    """The same samples again: the counts double, and no mean changes."""
    for first, second in results[f"{share}/{setting}"]:
        assert as_dict(second) == pytest.approx(as_dict(first), rel=2e-4 if setting == "eigenvalue" else 1e-12)


def as_dict(result):
    return scalars(result if isinstance(result, dict) else {"value": result})
