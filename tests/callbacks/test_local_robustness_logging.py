"""What the monitor of local robustness sends to Weights & Biases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_flatness import AttackMonitor, LocalRobustnessMonitor
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.bound_curves import accuracies_over_epsilon
from tests.callbacks.conftest import Net, fit, loader, trainer
from tests.wandb_reader import RecordedRun, read_run

RANGE: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
EPOCHS = 2


def monitors(**settings: Any) -> tuple[LocalRobustnessMonitor, AttackMonitor]:
    attack = AttackMonitor(0.1, epsilons=[0.05, 0.3], masking=False, num_examples=0, **RANGE)
    return LocalRobustnessMonitor(0.1, **RANGE, **settings), attack


def lines(place: Path) -> dict[str, list[tuple[float, float]]]:
    """Name → points of the lines of the only chart over epsilon of bounds."""
    tables = {path.resolve() for path in place.rglob("*.table.json")}
    (file,) = (path for path in tables if "epsilon_curve" in str(path) and "bound" in str(path.relative_to(place)))
    found: dict[str, list[tuple[float, float]]] = {}
    for epsilon, name, accuracy in json.loads(file.read_text())["data"]:
        found.setdefault(name, []).append((epsilon, accuracy))
    return found


def points(row: dict[str, float], *names: str) -> Any:
    curves = accuracies_over_epsilon(row)
    return {name: [pytest.approx(point) for point in zip(*curves[name], strict=True)] for name in names}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedRun, dict[str, Any], dict[str, Any], Path]:
    place = tmp_path_factory.mktemp("run")
    watch, attack = monitors(lipschitz="certified")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        fit(Net(), watch, attack, logger=WandbLogger(offline=True, save_dir=place), max_epochs=EPOCHS)
        wandb.finish()
    return read_run(place), watch.history()[-1], attack.history()[-1], place


def test_every_value_has_a_summary_and_the_axis_of_the_steps(recorded: Any) -> None:
    run, last, _, _ = recorded
    names = {name for name in last if name.startswith("bound/")}
    assert len(names) > 12
    for name in names:
        assert set(run.summary[name]) == {"min", "max", "last"}
        assert len([row for row in run.history if name in row]) == EPOCHS


def test_configuration_says_what_was_measured(recorded: Any) -> None:
    found = recorded[0].config["bound_monitor"]
    assert found["lipschitz"] == "certified"
    assert found["threat"]["epsilon"] == 0.1
    assert found["radii"] == pytest.approx([0.025, 0.05, 0.1, 0.2])


def test_chart_holds_guarantee_and_attacks_of_the_last_epoch(recorded: Any) -> None:
    _, last, attacked, place = recorded
    assert lines(place) == points({**last, **attacked}, "certified", "attacks, linf")
    assert len(lines(place)["attacks, linf"]) == 3


def test_chart_of_a_test_with_a_group_of_its_own(tmp_path: Path) -> None:
    watch, attack = monitors(group="bound_own", dataloaders=[1])
    runner = trainer(watch, attack, logger=WandbLogger(offline=True, save_dir=tmp_path))
    runner.test(Net(), [loader(), loader(20, seed=1)], verbose=False)
    wandb.finish()
    run = read_run(tmp_path)
    assert any(name.startswith("test_bound_own/epsilon_curve/dataloader_idx_1") for row in run.history for name in row)
    found = lines(tmp_path)
    assert set(found) == {"estimated", "attacks, linf"}
    (row,) = watch.history()
    assert found["estimated"][-1] == (
        pytest.approx(0.2),
        pytest.approx(row["test_bound_own/estimated_accuracy_0_2/dataloader_idx_1"]),
    )
    assert keys.TIGHTNESS.replace("bound/", "test_bound_own/") + "/dataloader_idx_1" in row
