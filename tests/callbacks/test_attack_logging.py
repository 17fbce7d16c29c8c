"""What the attack monitor shows: in Weights & Biases, in other loggers, and from YAML."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib.image import imread
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_flatness import AttackMonitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import Net, fit
from tests.wandb_reader import RecordedRun, read_run

EPOCHS = 3
EPSILONS = [0.05, 0.4]
LABELS = ("linf_0_2", "pgd")
EXAMPLES = 3


class ImageNet(Net):
    """Classifies small images by a convolution; the logits of the masked kind are far apart."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), nn.Linear(64, 3))
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.head(self.body(inputs))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def images(count: int = 48) -> DataLoader[Any]:
    """Stripes of three kinds, noisy."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % 3
    stripes = torch.eye(3).repeat(2, 2)[target].view(count, 1, 1, 6).expand(-1, 1, 6, 6)
    noise = torch.rand(count, 1, 6, 6, generator=generator)
    return DataLoader(TensorDataset(0.4 * stripes + 0.6 * noise, target), 16)


def run_with(net: Net, watch: AttackMonitor, place: Path) -> RecordedRun:
    logger = WandbLogger(offline=True, save_dir=place)
    fit(net, watch, logger=logger, max_epochs=EPOCHS, train=images(), val=images())
    wandb.finish()
    return read_run(place)


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    wandb.finish()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedRun, AttackMonitor, Path]:
    place = tmp_path_factory.mktemp("run")
    attacks: dict[str, Any] = {"PGD": {"steps": 10, "alpha": 0.05}}
    watch = AttackMonitor(0.2, attacks=attacks, epsilons=EPSILONS, max_samples=40, num_examples=EXAMPLES)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        return run_with(ImageNet(), watch, place), watch, place


def _logged(watch: AttackMonitor) -> set[str]:
    return set().union(*watch.history()) - {"stage", "epoch", "step"}


def test_every_value_is_recorded_in_every_epoch(recorded: tuple[RecordedRun, AttackMonitor, Path]) -> None:
    run, watch, _ = recorded
    for name in _logged(watch):
        expected = [row[name] for row in watch.history() if name in row]
        assert [row[name] for row in run.history if name in row] == pytest.approx(expected, rel=1e-6), name
        assert set(run.summary[name]) == {"min", "max", "last"}


def test_every_quantity_of_every_attack_is_logged(recorded: tuple[RecordedRun, AttackMonitor, Path]) -> None:
    _, watch, _ = recorded
    expected = {keys.attack_key(label, quantity) for label in LABELS for quantity in keys.ATTACK_QUANTITIES}
    expected -= {keys.attack_key("pgd", name) for name in (keys.STEPS_TO_FOOL, keys.STEPS_TO_FOOL_MEAN)}  # not told
    expected |= {keys.attack_key(f"linf_0_{number}", keys.ROBUST_ACCURACY) for number in ("05", "4")}
    expected |= {keys.attack_key(keys.WORST_CASE, f"{keys.ROBUST_ACCURACY}{end}") for end in ("", "_low", "_high")}
    assert {name for name in _logged(watch) if name.startswith("attack/")} == expected
    masking = {name for name in _logged(watch) if name.startswith("masking/")}
    assert masking <= {*keys.MASKING_KEYS, keys.ALARM}
    assert keys.ALARM in masking
    assert len(masking) > 8


def test_table_of_adversarial_examples_with_pictures(recorded: tuple[RecordedRun, AttackMonitor, Path]) -> None:
    run, _, place = recorded
    (row,) = [row for row in run.history if keys.ADVERSARIAL_EXAMPLES in row]
    table = row[keys.ADVERSARIAL_EXAMPLES]
    assert table["_type"] == "table-file"
    assert table["nrows"] == EXAMPLES * len(LABELS)
    assert table["ncols"] == 7
    panel = row[keys.ADVERSARIAL_IMAGES]
    assert panel["count"] == EXAMPLES * len(LABELS)
    assert (panel["width"], panel["height"]) == (3 * 114, 114)  # 19 times as large, over 112
    assert all(" → " in caption for caption in panel["captions"])
    pictures = {path.resolve() for path in place.rglob("*.png") if "media" in path.parts}
    assert len(pictures) == EXAMPLES * len(LABELS)
    shown = [imread(path) for path in pictures]
    assert all(picture.max() > 0.5 for picture in shown)
    assert all((picture == picture[::19, ::19].repeat(19, 0).repeat(19, 1)).all() for picture in shown)


def test_chart_over_epsilon(recorded: tuple[RecordedRun, AttackMonitor, Path]) -> None:
    run, _, _ = recorded
    assert any(name.startswith(keys.EPSILON_CURVE) for row in run.history for name in row)


def test_configuration(recorded: tuple[RecordedRun, AttackMonitor, Path]) -> None:
    run, _, _ = recorded
    found = run.config["attack_monitor"]
    assert found["threat"]["epsilon"] == 0.2
    assert found["budget"] == "fast"
    assert set(found["attacks"]) == set(LABELS)
    assert found["max_samples"] == 40
    assert found["max_time_fraction"] == "inf"  # JSON has no such number


def test_alarm_says_why_once_on_the_console_and_in_the_summary(tmp_path: Path) -> None:
    watch = AttackMonitor(0.1, num_examples=0)
    with pytest.warns(UserWarning, match="may be fooled by masked gradients:\n- ") as caught:
        run = run_with(ImageNet(scale=3000.0), watch, tmp_path)
    assert sum("masked gradients:" in str(one.message) for one in caught) == 1
    assert [row[keys.ALARM] for row in watch.history()][-1] == 1
    reasons = run.summary[keys.MASKING_REASONS]
    assert reasons
    assert all(isinstance(reason, str) and len(reason.split()) > 5 for reason in reasons)


def test_own_group(tmp_path: Path) -> None:
    watch = AttackMonitor(0.1, group="attack_small", num_examples=0)
    fit(ImageNet(), watch, AttackMonitor(0.2, num_examples=0), logger=CSVLogger(tmp_path), train=images(), val=images())
    names = _logged(watch)
    assert "attack_small/linf_0_1_success_rate" in names
    assert "attack_small_masking/alarm" in names
    assert {name.split("/")[0] for name in names} == {"attack_small", "attack_small_masking"}


def test_inputs_that_are_no_images_give_a_table_without_pictures(tmp_path: Path) -> None:
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    fit(Net(), AttackMonitor(0.5, lower=-5.0, upper=5.0, masking=False), logger=logger)
    wandb.finish()
    (row,) = [row for row in read_run(tmp_path).history if keys.ADVERSARIAL_EXAMPLES in row]
    assert row[keys.ADVERSARIAL_EXAMPLES]["ncols"] == 6
