"""Reading what Lightning's ``CSVLogger`` wrote."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_flatness.tracking.csv_log import read_csv_log, read_epochs


def written(folder: Path, rows):
    """Log rows in Lightning's way, each under its step."""
    logger = CSVLogger(folder)
    for step, row in enumerate(rows):
        logger.log_metrics(row, step=step)
    logger.save()
    return Path(logger.log_dir) / "metrics.csv"


def test_rows_of_one_epoch_become_one(tmp_path):
    rows = [
        {"epoch": 0, "train_loss": 3.0},
        {"epoch": 0, "val_loss": 2.5, "flatness/median": 0.1},
        {"epoch": 1, "train_loss": 2.0},
        {"epoch": 1, "val_loss": 1.5, "flatness/median": 0.2},
    ]
    assert read_epochs(written(tmp_path, rows)) == [
        {"epoch": 0, "step": 1, "train_loss": 3.0, "val_loss": 2.5, "flatness/median": 0.1},
        {"epoch": 1, "step": 3, "train_loss": 2.0, "val_loss": 1.5, "flatness/median": 0.2},
    ]


def test_the_last_value_of_a_key_counts(tmp_path):
    rows = [{"epoch": 0, "train_loss": 3.0}, {"epoch": 0, "train_loss": 2.0}, {"epoch": 0, "val_loss": 1.0}]
    assert read_epochs(written(tmp_path, rows)) == [{"epoch": 0, "step": 2, "train_loss": 2.0, "val_loss": 1.0}]


def test_values_are_read_to_the_last_digit_and_missing_ones_have_no_entry(tmp_path):
    rows = [{"epoch": 0, "a": 1 / 3}, {"epoch": 1, "b": 1e-300}, {"epoch": 2, "a": math.inf}]
    assert [without_step(row) for row in read_epochs(written(tmp_path, rows))] == [
        {"epoch": 0, "a": 1 / 3},
        {"epoch": 1, "b": 1e-300},
        {"epoch": 2, "a": math.inf},
    ]


def test_epochs_are_in_order_of_their_number(tmp_path):
    rows = [{"epoch": epoch, "a": float(epoch)} for epoch in (10, 9, 2)]
    assert [row["epoch"] for row in read_epochs(written(tmp_path, rows))] == [2, 9, 10]


def test_a_file_of_no_rows_has_no_epochs(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n")
    assert read_epochs(tmp_path / "metrics.csv") == []


def test_every_row_has_its_epoch_even_where_none_was_logged(tmp_path):
    assert [row["epoch"] for row in read_epochs(written(tmp_path, [{"a": 1.0}, {"a": 2.0}]))] == [0]


class Model(BoringModel):
    """Logs the number of the epoch, so that one sees where a value ends up."""

    def on_validation_epoch_end(self) -> None:
        self.log("own_epoch", float(self.current_epoch))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Epochs of a real fit."""
    folder = tmp_path_factory.mktemp("fit")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=4,
        limit_val_batches=1,
        log_every_n_steps=2,
        logger=CSVLogger(folder),
        callbacks=[LearningRateMonitor(logging_interval="epoch")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Model())
    return read_epochs(Path(trainer.logger.log_dir) / "metrics.csv")


def test_a_real_fit_has_one_row_per_epoch_with_its_own_values(fitted):
    assert [row["epoch"] for row in fitted] == [0, 1, 2]
    assert [row["own_epoch"] for row in fitted] == [0, 1, 2]


def test_what_is_logged_without_an_epoch_does_not_end_up_in_the_first(fitted):
    """``LearningRateMonitor`` logs under the step alone."""
    assert fitted[0]["step"] < fitted[1]["step"]
    assert fitted[0].get("lr-SGD") in {None, 1.0}


def without_step(row):
    return {name: value for name, value in row.items() if name != "step"}


def test_several_validations_of_an_epoch_are_noted(tmp_path):
    lines = [
        "epoch,step,flatness/median,train_loss_step",
        "0,5,0.5,",
        "0,6,,2.0",
        "0,7,,1.0",
        "0,9,0.25,",
        "1,19,0.125,",
    ]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([*lines, ""]))
    log = read_csv_log(path)
    assert [row["flatness/median"] for row in log.epochs] == [0.25, 0.125]
    assert log.notes == ["1 more validations of an epoch were left out: the last one of each epoch counts."]
