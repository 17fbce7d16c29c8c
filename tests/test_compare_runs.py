"""The example that compares five runs."""

import pytest

from examples import compare_runs
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.runs import read_runs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled")
def test_the_multiplied_head_changes_no_decision_and_no_training(tmp_path):
    folder = tmp_path / "runs"
    compare_runs.main(["--folder", str(folder), "--epochs", "2"])
    runs = {run.name: run for run in read_runs([str(folder)])}
    assert set(runs) == set(compare_runs.RUNS)
    plain, confident = runs["plain"].epochs, runs["head x50"].epochs
    for key in ("val_accuracy", "train_loss", keys.attack_key("linf_0_2", keys.CLEAN_ACCURACY)):
        assert [row[key] for row in plain] == [row[key] for row in confident]
    ordinary = keys.attack_key("pgd", keys.ROBUST_ACCURACY)
    strong = keys.attack_key("linf_0_2", keys.ROBUST_ACCURACY)
    assert confident[-1][ordinary] > plain[-1][ordinary] + 0.2
    assert confident[-1][strong] < plain[-1][strong] + 0.1
    assert (confident[-1][keys.ALARM], plain[-1][keys.ALARM]) == (1, 0)
    assert "head x50: do not trust its robustness" in (folder / "report.html").read_text(encoding="utf-8")
