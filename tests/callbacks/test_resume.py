"""The curve survives checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_flatness import RelativeFlatnessMonitor
from tests.callbacks.conftest import Net, curve, epochs, fit, loader, trainer, validate

# Lightning asks for the callback that saved the checkpoint, which need not save another one here.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")

KEY = "flatness/relative_flatness"


def _fit_and_save(monitor: RelativeFlatnessMonitor, place: Path, **settings: Any) -> Path:
    saving = ModelCheckpoint(place, filename="last")
    fit(Net(), monitor, saving, enable_checkpointing=True, **{"max_epochs": 2, **settings})
    return place / "last.ckpt"


@pytest.mark.parametrize(("every_n_epochs", "measured"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_resumed_curve_has_every_point_once(every_n_epochs: int, measured: list[int], tmp_path: Path) -> None:
    first = RelativeFlatnessMonitor(every_n_epochs=every_n_epochs)
    checkpoint = _fit_and_save(first, tmp_path)
    resumed = RelativeFlatnessMonitor(every_n_epochs=every_n_epochs)
    trainer(resumed, max_epochs=4).fit(Net(), loader(), loader(20, seed=1), ckpt_path=checkpoint, weights_only=True)
    assert epochs(resumed) == measured
    assert resumed.history()[: len(first.history())] == first.history()


def test_resumed_curve_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = RelativeFlatnessMonitor()
    torch.manual_seed(0)
    fit(Net(), whole, max_epochs=4)
    torch.manual_seed(0)
    checkpoint = _fit_and_save(RelativeFlatnessMonitor(), tmp_path)
    resumed = RelativeFlatnessMonitor()
    trainer(resumed, max_epochs=4).fit(Net(), loader(), loader(20, seed=1), ckpt_path=checkpoint)
    assert curve(resumed) == curve(whole)
    assert [row["step"] for row in resumed.history()] == [row["step"] for row in whole.history()]


# Lightning's, of data that starts again: no matter where only the number of steps is looked at.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("interval", [0.5, 0.25])
def test_resumed_within_an_epoch(interval: float, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", KEY, save_top_k=-1)
    settings: dict[str, Any] = {"val_check_interval": interval, "num_sanity_val_steps": 1}
    whole = RelativeFlatnessMonitor(every_n_epochs=2)
    fit(Net(), whole, saving, train=loader(32), enable_checkpointing=True, max_epochs=3, **settings)
    resumed = RelativeFlatnessMonitor(every_n_epochs=2)
    runner = trainer(resumed, max_epochs=3, **settings)
    runner.fit(Net(), loader(32), loader(20, seed=1), ckpt_path=tmp_path / "step=10.ckpt")
    steps = [row["step"] for row in resumed.history()]
    assert steps == [row["step"] for row in whole.history()]


def test_state_holds_plain_values_only(tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    checkpoint = torch.load(_fit_and_save(monitor, tmp_path), weights_only=True)
    state = checkpoint["callbacks"][monitor.state_key]
    assert state["history"] == monitor.history()
    assert {type(value) for row in state["history"] for value in row.values()} <= {int, float, str}


def test_validating_a_checkpoint_keeps_the_curve(tmp_path: Path) -> None:
    monitor = RelativeFlatnessMonitor()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    runner = fit(Net(), monitor, saving, enable_checkpointing=True, max_epochs=3)
    for path in sorted(tmp_path.glob("*.ckpt")):
        runner.validate(Net(), loader(20, seed=1), ckpt_path=path, verbose=False)
    fitted, validated = monitor.history()[:3], monitor.history()[3:]
    assert [row[KEY] for row in validated] == pytest.approx([row[KEY] for row in fitted], rel=1e-6)


def test_monitors_of_two_groups_keep_their_own_curves(tmp_path: Path) -> None:
    def monitors() -> list[RelativeFlatnessMonitor]:
        return [RelativeFlatnessMonitor(), RelativeFlatnessMonitor("maxeig", group="sharpest")]

    first = monitors()
    assert first[0].state_key != first[1].state_key
    saving = ModelCheckpoint(tmp_path, filename="last")
    fit(Net(), *first, saving, enable_checkpointing=True)
    resumed = monitors()
    trainer(*resumed, max_epochs=2).fit(Net(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt")
    for before, after in zip(first, resumed, strict=True):
        assert after.history()[:1] == before.history()
    assert curve(resumed[0]) != curve(resumed[1], "sharpest/relative_flatness")


def test_weights_of_a_checkpoint_give_its_value(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, "{epoch}", KEY, mode="min")
    monitor = RelativeFlatnessMonitor()
    fit(Net(), monitor, saving, enable_checkpointing=True, max_epochs=3)
    net = Net()
    net.load_state_dict(torch.load(saving.best_model_path, weights_only=True)["state_dict"])
    logged = validate(net, RelativeFlatnessMonitor())
    assert logged[KEY] == pytest.approx(min(curve(monitor)), rel=1e-6)


def test_monitors_may_come_go_and_change_between_fits(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="last")
    gone = RelativeFlatnessMonitor("layerwise", group="gone")
    first = RelativeFlatnessMonitor()
    fit(Net(), first, gone, saving, enable_checkpointing=True, max_epochs=2)
    changed = RelativeFlatnessMonitor("maxeig", every_n_epochs=2, max_samples=7)
    added = RelativeFlatnessMonitor(group="added")
    runner = trainer(changed, added, max_epochs=5)
    runner.fit(Net(), loader(), loader(20, seed=1), ckpt_path=tmp_path / "last.ckpt")
    assert changed.history()[:2] == first.history()
    assert epochs(changed) == [0, 1, 3]
    assert epochs(added) == [2, 3, 4]
