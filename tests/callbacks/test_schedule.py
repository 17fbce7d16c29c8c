"""When it measures, and that checkpoints and early stopping can rely on it."""

import pickle
from copy import deepcopy
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_flatness import RelativeFlatnessMonitor
from tests.callbacks.conftest import Net, Spy, by_hand, curve, epochs, fit, loader, trainer, validate

KEY = "flatness/relative_flatness"
EPOCHS = 4


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_checkpoint_and_early_stopping_see_each_value(order: tuple[int, ...], interval: float, tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    # A rise by any amount counts as getting worse, so that the training stops at the first one.
    stopping = EarlyStopping(KEY, mode="min", patience=1, check_on_train_epoch_end=False)
    checkpoint = ModelCheckpoint(tmp_path, "{step}", KEY, mode="min", save_top_k=-1)
    callbacks: list[Callback] = [monitor, stopping, checkpoint]
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "enable_checkpointing": True, "val_check_interval": interval}
    fit(Net(), *(callbacks[index] for index in order), **settings)
    values = curve(monitor)
    rises = [index for index in range(1, len(values)) if values[index] > min(values[:index])]
    assert len(values) == (rises[0] + 1 if rises else EPOCHS / interval)
    assert float(stopping.best_score) == pytest.approx(min(values), rel=1e-6)
    assert [float(value) for value in checkpoint.best_k_models.values()] == pytest.approx(values, rel=1e-6)
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    assert best["global_step"] == monitor.history()[values.index(min(values))]["step"]


@pytest.mark.parametrize("sanity_batches", [0, 2, -1])
def test_sanity_check_leaves_no_trace(sanity_batches: int, tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    before: dict[str, Any] = {}
    spy = Spy("on_train_start", lambda runner, _: before.update(runner.callback_metrics, rows=monitor.history()))
    logger = CSVLogger(tmp_path)
    fit(Net(), monitor, spy, num_sanity_val_steps=sanity_batches, logger=logger)
    assert before == {"rows": []}
    assert epochs(monitor) == [0]
    written = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = written[0].split(",").index(KEY)
    assert [float(cell) for row in written[1:] if (cell := row.split(",")[column])] == pytest.approx(curve(monitor))


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({}, [0, 1, 2, 3]),
        ({"val_check_interval": 0.5}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"check_val_every_n_epoch": 2}, [1, 3]),
        ({"every_n_epochs": 2}, [0, 2]),
        ({"every_n_epochs": 3}, [0, 3]),
        ({"every_n_epochs": 100}, [0]),
        ({"every_n_epochs": 2, "val_check_interval": 0.5}, [0, 0, 2, 2]),
        ({"every_n_epochs": 4, "check_val_every_n_epoch": 2}, [1]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [0, 1, 2, 2, 3]),
        ({"num_sanity_val_steps": 0}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_measures_in_the_epochs_asked_for(settings: dict[str, Any], measured: list[int]) -> None:
    settings = dict(settings)
    monitor = RelativeFlatnessMonitor(every_n_epochs=settings.pop("every_n_epochs", 1))
    fit(Net(), monitor, train=loader(32), max_epochs=EPOCHS, **settings)
    assert epochs(monitor) == measured
    assert {row["stage"] for row in monitor.history()} == {"fit"}


def test_every_row_is_of_its_own_weights() -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    fit(net, monitor, max_epochs=2, val_check_interval=1, num_sanity_val_steps=0)
    batches = [net.seen[start : start + 3] for start in range(0, len(net.seen), 3)]
    assert curve(monitor) == pytest.approx([by_hand(seen)[KEY] for seen in batches], rel=1e-9)
    assert [row["step"] for row in monitor.history()] == [1, 2, 3, 4, 5, 6]
    assert len(set(curve(monitor))) == 6


def test_values_of_epochs_that_are_left_out_are_not_logged_again(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(Net(), RelativeFlatnessMonitor(every_n_epochs=2), logger=logger, max_epochs=4)
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    place = {name: index for index, name in enumerate(header.split(","))}
    table = [line.split(",") for line in lines]
    assert [row[place["epoch"]] for row in table if row[place[KEY]]] == ["0", "2"]


@pytest.mark.filterwarnings("ignore:You are using `fast_dev_run`")  # so says Lightning of its own accord
def test_fast_dev_run_measures_its_one_batch() -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    fit(net, monitor, fast_dev_run=True)
    assert curve(monitor) == pytest.approx([by_hand(net.seen)[KEY]], rel=1e-9)


def test_validate_and_test_have_rows_of_their_own() -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(every_n_epochs=3)
    runner = fit(net, monitor, max_epochs=2)
    runner.validate(net, loader(), verbose=False)
    runner.test(net, loader(), verbose=False)
    rows = monitor.history()
    assert [row["stage"] for row in rows] == ["fit", "validate", "test"]
    assert rows[1][KEY] == pytest.approx(rows[2][f"test_{KEY}"], rel=1e-12)


def test_history_cannot_be_changed_from_outside() -> None:
    monitor = RelativeFlatnessMonitor()
    fit(Net(), monitor)
    monitor.history()[0].clear()
    monitor.history().clear()
    assert KEY in monitor.history()[0]


@pytest.mark.parametrize("every_n_epochs", [1, 2])
def test_monitor_can_be_used_for_another_fit(every_n_epochs: int) -> None:
    monitor = RelativeFlatnessMonitor(every_n_epochs=every_n_epochs)
    fit(Net(), monitor, max_epochs=3)
    once = epochs(monitor)
    fit(Net(), monitor, max_epochs=3)
    assert epochs(monitor) == once * 2


def test_copy_of_a_monitor_goes_on_from_its_curve() -> None:
    monitor = RelativeFlatnessMonitor(loss=nn.CrossEntropyLoss())
    fit(Net(), monitor)
    copies = [deepcopy(monitor), pickle.loads(pickle.dumps(monitor))]  # noqa: S301 - our own
    for copy in copies:
        validate(Net(), copy)
        assert copy.history()[:-1] == monitor.history()
    assert len(monitor.history()) == 1


def test_fit_can_be_continued_by_the_same_trainer() -> None:
    net, monitor = Net(), RelativeFlatnessMonitor(every_n_epochs=2)
    runner: Trainer = fit(net, monitor, max_epochs=2)
    runner.fit_loop.max_epochs = 5
    runner.fit(net, loader(), loader())
    assert epochs(monitor) == [0, 2, 4]


@pytest.mark.parametrize(
    ("settings", "val"),
    [({}, None), ({"limit_val_batches": 0}, loader())],
    ids=["no dataloader", "limit_val_batches=0"],
)
# Lightning warns of a validation step without data, too.
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_fit_without_validation_warns_and_runs(settings: dict[str, Any], val: Any) -> None:
    net, monitor = Net(), RelativeFlatnessMonitor()
    with pytest.warns(UserWarning, match=r"^RelativeFlatnessMonitor measures nothing: this fit has no validation\.$"):
        trainer(monitor, **settings).fit(net, loader(), val)
    assert net.training_steps == 3
    assert monitor.history() == []
