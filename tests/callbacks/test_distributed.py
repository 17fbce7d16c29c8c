"""Two processes, and four, log what one would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_flatness import RelativeFlatnessMonitor
from tests.callbacks.conftest import flatness_of, trainer
from tests.callbacks.ddp_run import (
    ODD,
    SCENARIOS,
    attack_monitor,
    bound_monitor,
    scaling_monitor,
    trajectory_monitor,
)
from tests.callbacks.processes import found_by, run_processes
from tests.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # processes share the cores with whatever else runs

BOUNDS: dict[str, dict[str, Any]] = {
    "estimated": {"lipschitz_samples": 31},
    "certified": {"lipschitz": "certified"},
    "no_estimate": {"lipschitz_samples": 1},
}
ATTACKS = ("attack", "one_attacked", "one_attack_fails")
PATHS = ("paths", "one_followed")
TOGETHER = ["odd", "max_samples", "own_batches", "views"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all scenarios that two processes get through."""
    place = tmp_path_factory.mktemp("ddp")
    run_processes(
        "tests.callbacks.ddp_run",
        place,
        *TOGETHER,
        *ATTACKS,
        *BOUNDS,
        *PATHS,
        "scaling",
        "one_scaled",
        "one_fails",
        "one_sample",
        "traffic",
    )
    return place


@pytest.fixture(scope="module")
def folder_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a few scenarios that four processes get through."""
    place = tmp_path_factory.mktemp("ddp4")
    run_processes("tests.callbacks.ddp_run", place, "odd", "few", "one_sample", "attack", "estimated", count=4)
    return place


def _check(folder: Path, scenario: str, count: int = 2, **settings: Any) -> None:
    first, *others = found_by(folder, scenario, count)
    for other in others:
        assert first["history"] == other["history"]
        assert first["logged"] == other["logged"]
    assert [row["epoch"] for row in first["history"]] == [0, 1, 2]
    texts = [text for found in (first, *others) for text in found["warnings"]]
    assert [text for text in texts if "atness" in text or "TopEigenvalue" in text] == []

    net, _, data = SCENARIOS[scenario]()
    net.load_state_dict(torch.load(folder / f"{scenario}.0.pt", weights_only=True))
    # As many samples as both processes keep together.
    alone = RelativeFlatnessMonitor(head="head", top_eigenvalue_samples=512, **settings)
    trainer(alone).validate(net, data, verbose=False)
    expected = flatness_of(alone.history()[0])
    for values in (flatness_of(first["history"][-1]), first["logged"]):
        # Lanczos' method meets the samples in another order.
        assert values.pop("flatness/top_eigenvalue") == pytest.approx(expected["flatness/top_eigenvalue"], rel=2e-4)
        assert values == pytest.approx({name: value for name, value in expected.items() if name in values}, rel=1e-6)
        assert len(values) == len(expected) - 1


@pytest.mark.parametrize("scenario", TOGETHER)
def test_processes_agree_with_each_other_and_with_one_alone(scenario: str, folder: Path) -> None:
    _check(folder, scenario, max_samples=11 if scenario == "max_samples" else None)


def test_process_without_a_sample_of_its_own(folder: Path) -> None:
    _check(folder, "one_sample", max_samples=1)


@pytest.mark.parametrize("scenario", ["odd", "few", "one_sample"])
def test_four_processes_agree_with_each_other_and_with_one_alone(scenario: str, folder_of_four: Path) -> None:
    """Of 129 samples three are repeated to give all as many; of three, one process has a repeated one only."""
    _check(folder_of_four, scenario, 4, max_samples=1 if scenario == "one_sample" else None)


@pytest.mark.parametrize("count", [2, 4])
def test_attacks_of_all_processes_are_those_of_one(count: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("folder" if count == 2 else "folder_of_four")
    seconds = "attack/linf_0_1_seconds"
    rows = [{**found["history"][-1], seconds: 0} for found in found_by(folder, "attack", count)]
    assert all(row == rows[0] for row in rows)
    net, _, data = SCENARIOS["attack"]()
    net.load_state_dict(torch.load(folder / "attack.0.pt", weights_only=True))
    alone = attack_monitor()
    trainer(alone).validate(net, data, verbose=False)
    expected = {name: value for name, value in alone.history()[0].items() if name.startswith("attack/")}
    assert expected["attack/linf_0_1_samples"] == ODD
    assert 0 < expected["attack/linf_0_1_success_rate"] < 1
    for name in expected.keys() - {seconds}:
        assert rows[0][name] == pytest.approx(expected[name], rel=1e-5), name
    assert rows[0]["masking/alarm"] == alone.history()[0]["masking/alarm"]


@pytest.mark.parametrize(("scenario", "count"), [*((name, 2) for name in BOUNDS), ("estimated", 4)])
def test_bounds_of_all_processes_are_those_of_one(scenario: str, count: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("folder" if count == 2 else "folder_of_four")
    first, *others = found_by(folder, scenario, count)
    assert all(other["history"] == first["history"] for other in others)
    net, _, data = SCENARIOS[scenario]()
    net.load_state_dict(torch.load(folder / f"{scenario}.0.pt", weights_only=True))
    alone = bound_monitor(**BOUNDS[scenario])
    trainer(alone, attack_monitor()).validate(net, data, verbose=False)
    expected = flatness_of(alone.history()[0], "bound/")
    assert expected["bound/samples"] == BOUNDS[scenario].get("lipschitz_samples", ODD)
    assert expected["bound/violation_rate"] == 0
    found = flatness_of(first["history"][-1], "bound/")
    assert found == {name: pytest.approx(value, rel=1e-5, abs=1e-9) for name, value in expected.items()}


def test_trajectories_of_both_processes_are_those_of_one(folder: Path) -> None:
    first, second = found_by(folder, "paths")
    assert first["history"] == second["history"]
    assert first["trajectories"] == second["trajectories"]
    net, _, data = SCENARIOS["paths"]()
    net.load_state_dict(torch.load(folder / "paths.0.pt", weights_only=True))
    alone = trajectory_monitor()
    trainer(alone).validate(net, data, verbose=False)
    expected = flatness_of(alone.history()[0], "trajectory/")
    assert 10 < expected["trajectory/samples"] < 77
    found = flatness_of(first["history"][-1], "trajectory/")
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    for row, other in zip(first["trajectories"][-3:], alone.trajectories(), strict=True):
        assert row["path"] == other["path"]
        for name in ("neuronwise_mean", "loss_median", "flipped"):
            assert row["curves"][name] == pytest.approx(other["curves"][name], rel=1e-5), name


def test_process_without_a_sample_to_follow(folder: Path) -> None:
    first, second = found_by(folder, "one_followed")
    assert first["history"] == second["history"]
    assert {row["trajectory/samples"] for row in first["history"]} <= {0, 1}
    assert [row["epoch"] for row in first["history"]] == [0, 1, 2]


def test_scaling_of_both_processes_is_that_of_one(folder: Path) -> None:
    first, second = found_by(folder, "scaling")
    assert first["history"] == second["history"]
    net, _, data = SCENARIOS["scaling"]()
    net.load_state_dict(torch.load(folder / "scaling.0.pt", weights_only=True))
    alone = scaling_monitor(attack_samples=31)
    trainer(alone).validate(net, data, verbose=False)
    expected = {name: value for name, value in alone.history()[0].items() if name.startswith("scaling/")}
    assert (expected["scaling/samples"], expected["scaling/attacked_samples"]) == (ODD, 31)
    assert {name: first["history"][-1][name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_process_without_a_sample_to_scale(folder: Path) -> None:
    first, second = found_by(folder, "one_scaled")
    assert first["history"] == second["history"]
    assert [row["scaling/samples"] for row in first["history"]] == [1, 1, 1]


def test_warnings_were_looked_for(folder: Path) -> None:
    """Lightning does warn of the module's own value, which is not reduced over processes."""
    assert any("self.log('val_loss', ..., sync_dist=True)" in text for text in found_by(folder, "odd")[0]["warnings"])


def test_process_without_a_sample_to_attack(folder: Path) -> None:
    first, second = found_by(folder, "one_attacked")
    seconds = "attack/linf_0_1_seconds"
    rows = [[{**row, seconds: 0} for row in found["history"]] for found in (first, second)]
    assert rows[0] == rows[1]
    assert [row["attack/linf_0_1_samples"] for row in rows[0]] == [1, 1, 1]


@pytest.mark.parametrize("scenario", ["one_fails", "one_attack_fails"])
def test_error_on_one_process_costs_both_the_point(scenario: str, folder: Path) -> None:
    first, second = found_by(folder, scenario)
    assert [row["epoch"] for row in first["history"]] == [0, 2]
    times = {key for row in first["history"] for key in row if key.endswith("_seconds")}
    same = [[{**row, **dict.fromkeys(times, 0)} for row in found["history"]] for found in (first, second)]
    assert same[0] == same[1]
    assert sum("leaves out that point" in text for text in second["warnings"]) == 1


def test_traffic_is_as_documented_and_does_not_grow_with_the_samples(folder: Path) -> None:
    first, second = found_by(folder, "traffic")
    assert first == second
    page = (ROOT / "docs" / "distributed.md").read_text()
    for monitor, of_samples in first.items():
        (calls, size), more = of_samples.values()
        assert more == [calls, size], monitor
        assert f"| `{monitor}` | {calls} | {size:,} |" in page
