"""Several processes find what one would."""

import pytest

from tests.metrics.ranks import METRICS, results_of_ranks
from tests.metrics.test_local_robustness import EPSILON, RADII, inputs_of, plain, updated

pytestmark = pytest.mark.slow

SETTINGS = {"LocalRobustnessBound": {"radii": RADII, "epsilon": EPSILON}, "LossBoundCheck": {}}
SHARES = {
    "unequal": [[(0, 3)], [(3, 4), (4, 40)]],
    "no sample": [[(0, 25), (25, 40)], [(40, 40)]],
}
JOBS = [(share, name) for share in SHARES for name in SETTINGS]


def new(name):
    return METRICS[name](**SETTINGS[name])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {
        f"{share}/{name}": {
            "metric": name,
            "settings": SETTINGS[name],
            "batches": [[inputs_of(new(name), slice(*ends)) for ends in part] for part in SHARES[share]],
            "rounds": 2,
        }
        for share, name in JOBS
    }
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("share", "name"), JOBS)
def test_every_rank_computes_what_one_process_would(share, name, results):
    metric = new(name)
    for rounds in range(2):
        values = plain(updated(metric).compute())
        expected = {entry: pytest.approx(value, rel=1e-12) for entry, value in values.items()}
        for rank, result in enumerate(results[f"{share}/{name}"]):
            assert isinstance(result, list), f"rank {rank} ended with code {result}"
            assert plain(result[rounds]) == expected
