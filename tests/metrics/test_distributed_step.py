"""Several processes return from each call what one would return for all their batches together."""

import pytest
import torch

from tests.metrics.cases import CASES
from tests.metrics.ranks import results_of_ranks

pytestmark = pytest.mark.slow

# One that keeps samples, and one whose states are sums and largest values.
STEPPING = [case for case in CASES if case.name in {"HeadTopEigenvalue", "LocalRobustnessBound"}]
# Of each process, the samples of its two batches.
SHARES = ((slice(0, 10), slice(20, 30)), (slice(10, 20), slice(30, 40)))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {
        case.name: {
            "metric": case.name,
            "settings": {**case.settings, "dist_sync_on_step": True},
            "batches": [[case.inputs(rows) for rows in share] for share in SHARES],
            "rounds": 0,
        }
        for case in STEPPING
    }
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", STEPPING, ids=[case.name for case in STEPPING])
def test_every_call_returns_what_one_process_would(case, results):
    expected = [case.updated(rows).compute() for rows in (slice(0, 20), slice(20, 40))]
    for rank, values in enumerate(results[case.name]):
        assert isinstance(values, list), f"rank {rank} ended with code {values}"
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
