"""Several processes count what one would."""

import pytest

from tests.metrics.outcomes import ARGUMENTS, ATTACKS, EPSILONS, NUM_CLASSES, arguments, outcomes, plain
from tests.metrics.ranks import METRICS, results_of_ranks

pytestmark = pytest.mark.slow

SHARES = {
    "two": [[(0, 15), (15, 20)], [(20, 30), (30, 40)]],
    "three": [[(0, 3)], [(3, 4), (4, 20), (20, 29)], [(29, 39), (39, 40)]],
    "an empty batch": [[(0, 40)], [(40, 40)]],
    "no batch": [[(0, 25), (25, 40)], []],
}
SETTINGS = {
    "AttackSuccessRate": {"num_classes": NUM_CLASSES},
    "RobustAccuracy": {"attacks": ATTACKS},
    "RobustAccuracyCurve": {"epsilons": EPSILONS},
}
JOBS = [(share, metric) for share in SHARES for metric in SETTINGS]


def job(share, metric):
    batches = [
        [arguments(outcomes()[start:stop], *ARGUMENTS[metric]) for start, stop in part] for part in SHARES[share]
    ]
    # A rank that adds nothing does not compute again but returns its last result: the others would wait for it.
    rounds = 2 if all(SHARES[share]) else 1
    return {"metric": metric, "settings": SETTINGS[metric], "batches": batches, "rounds": rounds}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {f"{share}/{metric}": job(share, metric) for share, metric in JOBS}
    return results_of_ranks(jobs, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("share", "name"), JOBS)
def test_every_rank_computes_what_one_process_would(share, name, results):
    metric = METRICS[name](**SETTINGS[name])
    for rounds in range(job(share, name)["rounds"]):
        metric.update(**arguments(outcomes(), *ARGUMENTS[name]))
        expected = plain(metric.compute())
        for rank, result in enumerate(results[f"{share}/{name}"]):
            assert isinstance(result, list), f"rank {rank} ended with code {result}"
            value = plain(result[rounds])
            assert value.keys() == expected.keys()
            for entry in expected:
                assert value[entry] == pytest.approx(expected[entry], rel=1e-12), (rank, entry)
