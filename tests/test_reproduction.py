"""The reproduction of the papers, in small."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import reproduce_paper
from examples.mnist import MNISTDigits
from examples.paper_experiments import SCALES
from examples.paper_networks import NETWORKS, digit_cnn, head_of
from tests.wandb_reader import read_run

SMALL = reproduce_paper.Setting(MNISTDigits(), digit_cnn, 0.3, 8, 2, 0.05)
COLUMNS = {
    "scaling": {
        *("scale", "clean_accuracy", "robust_accuracy_cross_entropy", "robust_accuracy_margin"),
        *("transfer_success_rate", "zero_gradient_rate", "relative_flatness"),
    },
    "trajectory": {"step", "relative_flatness", "loss", "confidence", "flip_rate"},
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_paper, "setting_of", lambda _: SMALL)
        patch.setattr(sys, "argv", ["reproduce_paper", "--output", str(place), "--samples", "40"])
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        reproduce_paper.main()
    return place


def test_results_have_the_promised_columns(written: Path) -> None:
    results = json.loads((written / "results.json").read_text())
    assert [row["scale"] for row in results["scaling"]] == list(SCALES)
    assert all(row.keys() >= COLUMNS["scaling"] for row in results["scaling"])
    for kind in ("standard", "adversarial"):
        rows = results["trajectory"][kind]
        assert [row["step"] for row in rows] == list(range(9))
        assert all(row.keys() == COLUMNS["trajectory"] for row in rows)
    assert results["bounds"]["standard"]["violation_rate"] == 0
    assert len({row["clean_accuracy"] for row in results["scaling"]}) == 1


def test_confidence_looks_robust_to_the_cross_entropy_only(written: Path) -> None:
    rows: dict[float, dict[str, Any]] = {
        row["scale"]: row for row in json.loads((written / "results.json").read_text())["scaling"]
    }
    assert rows[100]["robust_accuracy_cross_entropy"] > rows[1]["robust_accuracy_cross_entropy"] + 0.2
    assert rows[100]["robust_accuracy_margin"] <= rows[1]["robust_accuracy_margin"] + 0.03
    assert rows[100]["transfer_success_rate"] > 0.9


def test_everything_is_drawn_and_recorded(written: Path) -> None:
    for name in ("trajectory", "paths", "scaling", "loss_increase", "detection"):
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    recorded = {name for row in read_run(written / "wandb").history for name in row}
    for name in ("claims", "scaling", "trajectory_standard", "trajectory_adversarial", "figure_trajectory"):
        assert any(found.startswith(name) for found in recorded)


def test_claims_say_whether_they_hold(written: Path) -> None:
    claims = [reproduce_paper.Claim(**row) for row in json.loads((written / "results.json").read_text())["claims"]]
    lines = reproduce_paper.table(claims).splitlines()
    assert len(lines) == len(claims) + 1
    assert all(line.rstrip().endswith(("yes", "NO", "-")) for line in lines[1:])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_classify_small_images(name: str) -> None:
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert head_of(network).out_features == 10
