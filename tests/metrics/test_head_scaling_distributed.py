"""Several processes find what one would."""

import pytest
import torch

from tests.metrics.ranks import METRICS, results_of_ranks
from tests.metrics.test_confidence_flatness import part as of_samples
from tests.metrics.test_confidence_flatness import samples
from tests.metrics.test_head_scaling import SCALES, inputs, part

pytestmark = pytest.mark.slow

SETTINGS = {"HeadScaling": {"scales": SCALES}, "ConfidenceFlatness": {}}
SHARES = [[slice(0, 3)], [slice(3, 4), slice(4, 200)]]


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(0)
    head, confident = inputs(), samples(200)
    return {
        "HeadScaling": [[part(head, rows) for rows in share] for share in SHARES],
        "ConfidenceFlatness": [[of_samples(confident, rows) for rows in share] for share in SHARES],
    }


@pytest.fixture(scope="module")
def results(batches, tmp_path_factory):
    jobs = {
        name: {"metric": name, "settings": SETTINGS[name], "batches": batches[name], "rounds": 1} for name in SETTINGS
    }
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rank_computes_what_one_process_would(name, batches, results):
    metric = METRICS[name](**SETTINGS[name])
    for share in batches[name]:
        for batch in share:
            metric.update(**batch)
    for rank, result in enumerate(results[name]):
        assert isinstance(result, list), f"rank {rank} ended with code {result}"
        for entry, value in metric.compute().items():
            torch.testing.assert_close(result[0][entry], value, rtol=1e-12, atol=0)
