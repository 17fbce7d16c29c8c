"""The attack monitor over epochs: checkpoints, and rules of masking that do not run every time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_flatness import AttackMonitor
from lightning_flatness.tracking import keys
from tests.callbacks.conftest import Net, epochs, fit, loader, trainer

# Lightning asks for the callback that saved the checkpoint, which need not save another one here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy"),
]

RATE = "attack/linf_0_3_robust_accuracy"
EXPENSIVE = set(keys.EXPENSIVE_MASKING_KEYS) - {"masking/transfer_gap"}


def monitor(**settings: Any) -> AttackMonitor:
    return AttackMonitor(0.3, lower=-5.0, upper=5.0, num_examples=0, **{"masking_samples": 15, **settings})


def timeless(watch: AttackMonitor) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("_seconds")} for row in watch.history()]


def test_resumed_curve_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"masking_every_n": 3, "epsilons": [0.1, 0.2]}
    whole, first, resumed = (monitor(**settings) for _ in range(3))
    torch.manual_seed(0)
    fit(Net(), whole, max_epochs=5)
    torch.manual_seed(0)
    fit(Net(), first, ModelCheckpoint(tmp_path, filename="last"), enable_checkpointing=True, max_epochs=2)
    checkpoint = tmp_path / "last.ckpt"
    trainer(resumed, max_epochs=5).fit(Net(), loader(), loader(20, seed=1), ckpt_path=checkpoint)
    # Adversarial examples are not in checkpoints: the first expensive measurement after one has none to compare.
    rows = [[{**row, "masking/transfer_gap": 0.0} for row in timeless(watch)] for watch in (resumed, whole)]
    assert rows[0] == rows[1]
    state = torch.load(checkpoint, weights_only=True)["callbacks"][first.state_key]
    assert state["history"] == first.history()


def test_checkpoint_is_attacked_as_in_its_epoch(tmp_path: Path) -> None:
    watch = monitor(masking=False)
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    runner = fit(Net(), watch, saving, enable_checkpointing=True, max_epochs=3)
    for path in sorted(tmp_path.glob("*.ckpt")):
        runner.validate(Net(), loader(20, seed=1), ckpt_path=path, verbose=False)
    fitted, validated = watch.history()[:3], watch.history()[3:]
    assert [row["stage"] for row in validated] == ["validate"] * 3
    assert [row[RATE] for row in validated] == [row[RATE] for row in fitted]
    assert len({row[RATE] for row in fitted}) > 1


def test_expensive_rules_run_at_every_nth_measurement() -> None:
    watch = monitor(masking_every_n=2)
    runner = fit(Net(), watch, max_epochs=5)
    assert epochs(watch) == [0, 1, 2, 3, 4]
    assert [row.keys() >= EXPENSIVE for row in watch.history()] == [True, False, True, False, True]
    assert ["masking/transfer_gap" in row for row in watch.history()] == [False, False, True, False, True]
    runner.validate(Net(), loader(20, seed=1), verbose=False)
    assert watch.history()[-1].keys() >= EXPENSIVE


def test_what_an_expensive_rule_has_found_holds_until_it_runs_again(tmp_path: Path) -> None:
    first, resumed = monitor(masking_every_n=3), monitor(masking_every_n=3)
    fit(Net(), first, ModelCheckpoint(tmp_path, filename="last"), enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["callbacks"][first.state_key]["masking"]["telling"][0]["masking/black_box_gap"] = (0.5, 100.0)
    torch.save(checkpoint, tmp_path / "found.ckpt")
    trainer(resumed, max_epochs=4).fit(Net(), loader(), loader(20, seed=1), ckpt_path=tmp_path / "found.ckpt")
    assert [row[keys.ALARM] for row in resumed.history()] == [0, 1, 1, 0]
    assert "masking/black_box_gap" not in resumed.history()[1]
