"""Every documented key arrives, in Weights & Biases as in any other logger."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import DIM, HIDDEN, Net, StepNet, curve, fit, loader, trainer
from tests.wandb_reader import RecordedRun, read_run

EPOCHS = 3
HISTOGRAMS = [keys.histogram_key(part) for part in ("correct", "wrong")]


def _logger(place: Path) -> WandbLogger:
    return WandbLogger(offline=True, save_dir=place)


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    wandb.finish()


def _finish(place: Path) -> RecordedRun:
    wandb.finish()
    return read_run(place)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedRun, RelativeFlatnessMonitor]:
    place = tmp_path_factory.mktemp("run")
    monitor = RelativeFlatnessMonitor(variant="maxeig", max_samples=18)
    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(DIM, HIDDEN), nn.Tanh()))  # no feature is 0, whose κ has no logarithm
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        fit(net, monitor, logger=_logger(place), max_epochs=EPOCHS)
        return _finish(place), monitor


@pytest.mark.parametrize("key", keys.FLATNESS_KEYS)
def test_every_key_is_recorded_in_every_epoch(key: str, recorded: tuple[RecordedRun, RelativeFlatnessMonitor]) -> None:
    run, monitor = recorded
    values = [row[key] for row in run.history if key in row]
    assert values == pytest.approx(curve(monitor, key), rel=1e-6)
    assert len(values) == EPOCHS


def test_no_key_is_undocumented(recorded: tuple[RecordedRun, RelativeFlatnessMonitor]) -> None:
    run, _ = recorded
    found = {name for row in run.history for name in row if name.startswith("flatness/")}
    assert found == {*keys.FLATNESS_KEYS, *HISTOGRAMS}


@pytest.mark.parametrize("key", HISTOGRAMS)
def test_histograms_are_in_the_rows_of_their_values(
    key: str, recorded: tuple[RecordedRun, RelativeFlatnessMonitor]
) -> None:
    run, _ = recorded
    rows = [row for row in run.history if key in row]
    assert len(rows) == EPOCHS
    for row in rows:
        assert {keys.RELATIVE_FLATNESS, "val_loss", "trainer/global_step"} <= set(row)
        assert row[key]["_type"] == "histogram"
        assert len(row[key]["bins"]) == len(row[key]["values"]) + 1
        assert sum(sum(row[name]["values"]) for name in HISTOGRAMS) == 18


@pytest.mark.parametrize("key", keys.FLATNESS_KEYS)
def test_summary_holds_smallest_largest_and_last(
    key: str, recorded: tuple[RecordedRun, RelativeFlatnessMonitor]
) -> None:
    run, monitor = recorded
    values = curve(monitor, key)
    expected = {"min": min(values), "max": max(values), "last": values[-1]}
    assert run.summary[key] == pytest.approx(expected, rel=1e-6)


def test_configuration_says_what_was_measured(recorded: tuple[RecordedRun, RelativeFlatnessMonitor]) -> None:
    run, monitor = recorded
    assert monitor.head_name == "head"
    found = run.config["flatness_monitor"]
    expected = {"variant": "maxeig", "include_bias": False, "max_samples": 18, "head": "head"}
    assert {name: found[name] for name in expected} == expected
    assert found["loss"].startswith("CrossEntropy(")


def test_rows_are_keyed_by_the_step(recorded: tuple[RecordedRun, RelativeFlatnessMonitor]) -> None:
    run, _ = recorded
    steps = [row["trainer/global_step"] for row in run.history if keys.RELATIVE_FLATNESS in row]
    assert steps == sorted(set(steps))
    assert len(steps) == EPOCHS
    for key in keys.FLATNESS_KEYS:
        assert run.metrics[key].step_metric == "trainer/global_step" or run.metrics[key].step_metric_index > 0


def test_another_group_and_several_loaders_and_test(tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor(group="sharpest", dataloaders=[1])
    runner = trainer(monitor, logger=_logger(tmp_path))
    runner.test(Net(), [loader(), loader(20, seed=1)], verbose=False)
    run = _finish(tmp_path)
    own = [keys.RELATIVE_FLATNESS, *HISTOGRAMS]
    expected = {keys.full_key(key, group="sharpest", testing=True, dataloader_idx=1, num_dataloaders=2) for key in own}
    found = {name for row in run.history for name in row}
    assert expected <= found
    assert not {name for name in found if "flatness/" in name.partition("sharpest/")[0]}
    assert run.config["sharpest_monitor"]["head"] == "head"


def test_histograms_can_be_switched_off(tmp_path: Path) -> None:
    fit(Net(), RelativeFlatnessMonitor(log_histograms=False), logger=_logger(tmp_path))
    run = _finish(tmp_path)
    found = {name for row in run.history for name in row}
    assert keys.RELATIVE_FLATNESS in found
    assert not found & set(HISTOGRAMS)


def test_each_run_gets_its_definitions(tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        fit(Net(), monitor, logger=_logger(tmp_path / name))
        run = _finish(tmp_path / name)
        assert set(run.summary[keys.RELATIVE_FLATNESS]) == {"min", "max", "last"}
        assert run.config["flatness_monitor"]["head"] == "head"


class NoMedia(RelativeFlatnessMonitor):
    def _log_media(self, run: Any, trainer: Trainer, dataloader_idx: int) -> None:
        raise ConnectionError(f"no answer from {run} to {trainer} about {dataloader_idx}")


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_failure_of_the_run_changes_neither_values_nor_schedule(on_error: Any, tmp_path: Path) -> None:
    """Only the first process has a run: all others would wait where it leaves something out."""
    monitor, loaders = NoMedia(on_error=on_error, every_n_epochs=2), [loader(20, seed=1), loader(8, seed=2)]
    net = StepNet()
    with pytest.warns(UserWarning, match=r"^NoMedia failed in epoch 0 .*: ConnectionError: no answer from "):
        runner = fit(net, monitor, val=loaders, logger=_logger(tmp_path), max_epochs=3)
    assert [row["epoch"] for row in monitor.history()] == [0, 2]
    expected = {f"{keys.MEDIAN}/dataloader_idx_{index}" for index in range(2)}
    assert expected <= set(monitor.history()[0])
    assert expected <= set(runner.callback_metrics)


def _csv(place: Path) -> CSVLogger:
    return CSVLogger(place)


@pytest.mark.parametrize("make", [_csv, lambda _: False, lambda place: [_csv(place / "a"), _csv(place / "b")]])
def test_any_logger_or_none_will_do(make: Any, tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    logger: Logger | list[Logger] | bool | None = make(tmp_path)
    runner = fit(Net(), monitor, logger=logger, default_root_dir=tmp_path, max_epochs=2)
    assert len(curve(monitor)) == 2
    for one in runner.loggers:
        assert isinstance(one, CSVLogger)
        header = (Path(one.log_dir) / "metrics.csv").read_text().splitlines()[0]
        assert set(keys.FLATNESS_KEYS) <= set(header.split(","))
