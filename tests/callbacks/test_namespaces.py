"""``pytorch_lightning`` has classes of its own, and the monitors do in its Trainer what they do in ``lightning``'s."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import wandb
from torch import nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import CLASSES, DIM, HIDDEN, loader
from tests.conftest import _unchecked_shapes
from tests.wandb_reader import RecordedRun, read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        # Eight hidden units and few samples of random classes: attacks do fail here.
        "ignore:Ordinary attacks on the cross-entropy may be fooled",
        # Lightning asks for the callback that saved the checkpoint, which is another object in the other run.
        "ignore:Be aware that when using `ckpt_path`",
    ),
]
BALL: dict[str, Any] = {"epsilon": 0.3, "lower": -5.0, "upper": 5.0}


@pytest.fixture(autouse=True)
def _no_type_checker(unchecked_shapes: AbstractContextManager[None]) -> Iterator[None]:
    """Without beartype, which would insist on the annotations' own Trainer."""
    with unchecked_shapes:
        yield


def monitors() -> list[Monitor]:
    return [
        RelativeFlatnessMonitor(),
        AttackMonitor(**BALL, epsilons=[0.1, 0.3]),
        LocalRobustnessMonitor(**BALL),
        AttackTrajectoryMonitor(**BALL, steps=2, max_samples=8),
        HeadScalingMonitor(**BALL, scales=(1.0, 10.0), attack_samples=8),
    ]


def module(namespace: ModuleType) -> Any:
    class Net(namespace.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.Tanh())
            self.head = nn.Linear(HIDDEN, CLASSES)

        def forward(self, inputs: Any) -> Any:
            return self.head(self.body(inputs))

        def training_step(self, batch: Any, _: int) -> Any:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    return Net()


def trainer(namespace: ModuleType, callbacks: Any, **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return namespace.Trainer(accelerator="cpu", devices=1, callbacks=callbacks, **{**quiet, **settings})


class Outcome(NamedTuple):
    """What a fit that was interrupted leaves behind."""

    histories: list[list[dict[str, Any]]]
    best: Path
    run: RecordedRun


def interrupted_fit(namespace: ModuleType, place: Path) -> Outcome:
    """Two epochs, and a third one resumed from the best checkpoint by our key, with monitors that know nothing."""
    logger = namespace.loggers.WandbLogger(offline=True, save_dir=place)
    best = namespace.callbacks.ModelCheckpoint(place / "saved", monitor=keys.RELATIVE_FLATNESS, save_last=True)
    torch.manual_seed(0)
    data = loader(), loader(20, seed=1)
    trainer(namespace, [*monitors(), best], logger=logger, max_epochs=2).fit(module(namespace), *data)
    wandb.finish()
    resumed = monitors()
    again = trainer(namespace, resumed, logger=False, enable_checkpointing=False, max_epochs=3)
    again.fit(module(namespace), *data, ckpt_path=place / "saved" / "last.ckpt", weights_only=True)
    return Outcome([monitor.history() for monitor in resumed], Path(best.best_model_path), read_run(place))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    found = {}
    for namespace in (lightning.pytorch, pytorch_lightning):
        place = tmp_path_factory.mktemp("fit")
        with pytest.MonkeyPatch.context() as patch, _unchecked_shapes():
            patch.setenv("WANDB_SILENT", "true")
            found[namespace.__name__] = interrupted_fit(namespace, place)
    return found


def test_every_monitor_measures_the_same_in_both(outcomes: dict[str, Outcome]) -> None:
    ours, theirs = (outcomes[name].histories for name in ("lightning.pytorch", "pytorch_lightning"))
    assert [[row["epoch"] for row in history] for history in theirs] == [[0, 1, 2]] * len(monitors())
    for history, expected in zip(theirs, ours, strict=True):
        assert [values(row) for row in history] == [pytest.approx(values(row), nan_ok=True) for row in expected]


def values(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is measured in seconds."""
    return {name: value for name, value in row.items() if "seconds" not in name and "time" not in name}


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_checkpoints_are_chosen_by_a_key_of_ours(name: str, outcomes: dict[str, Outcome]) -> None:
    histories, best, _ = outcomes[name]
    flattest = min(histories[0][:2], key=lambda row: row[keys.RELATIVE_FLATNESS])
    assert best.stem == f"epoch={flattest['epoch']}-step={flattest['step']}"


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_weights_and_biases_has_scalars_and_media_of_every_monitor(name: str, outcomes: dict[str, Outcome]) -> None:
    logged = {key for row in outcomes[name].run.history for key in row}
    for history in outcomes[name].histories:
        assert {key for key in history[0] if "/" in key} <= logged
    assert keys.histogram_key("correct") in logged


def test_names_logged_are_the_same_in_both(outcomes: dict[str, Outcome]) -> None:
    ours, theirs = ({key for row in found.run.history for key in row} for found in outcomes.values())
    assert theirs == ours


def test_the_other_trainer_takes_callbacks_in_a_list_only() -> None:
    with pytest.raises(TypeError, match="'RelativeFlatnessMonitor' object is not iterable"):
        trainer(pytorch_lightning, RelativeFlatnessMonitor(), logger=False)


def test_modules_that_the_other_trainer_shards_are_refused() -> None:
    runner = trainer(pytorch_lightning, [], logger=False)
    runner.strategy.__class__ = pytorch_lightning.strategies.FSDPStrategy  # which itself refuses to be made on a CPU
    with pytest.raises(ValueError, match="AttackMonitor cannot measure a module sharded by FSDPStrategy; use ModelPa"):
        AttackMonitor(**BALL).setup(runner, module(pytorch_lightning), "fit")
