"""Several processes find what one would."""

import pytest

from tests.metrics.ranks import METRICS, results_of_ranks
from tests.metrics.trajectories import POSITIONS, part, trajectory_points

pytestmark = pytest.mark.slow

SETTINGS = {"positions": list(POSITIONS)}
SHARES = {
    "unequal": [[(0, 3)], [(3, 4), (4, 40)]],
    "no sample": [[(0, 25), (25, 40)], [(40, 40)]],
}


def batch(start, stop):
    return {"points": part(trajectory_points(), slice(start, stop))}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {
        name: {
            "metric": "AttackTrajectory",
            "settings": SETTINGS,
            "batches": [[batch(*ends) for ends in share] for share in shares],
            "rounds": 2,
        }
        for name, shares in SHARES.items()
    }
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", SHARES)
def test_every_rank_computes_what_one_process_would(name, results):
    metric = METRICS["AttackTrajectory"](**SETTINGS)
    for rounds in range(2):
        metric.update(**batch(0, 40))
        expected = {entry: value.item() for entry, value in metric.compute().items()}
        for rank, result in enumerate(results[name]):
            assert isinstance(result, list), f"rank {rank} ended with code {result}"
            found = {entry: value.item() for entry, value in result[rounds].items()}
            assert found == pytest.approx(expected, rel=1e-12), rank
