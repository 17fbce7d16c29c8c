"""What the monitor of trajectories logs is what the attack goes through."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from lightning_flatness import AttackTrajectory, AttackTrajectoryMonitor
from lightning_flatness.attacks import ThreatModel, path_positions, trajectory
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.trajectory_curves import trajectory_figure
from tests.callbacks.conftest import Net, StepNet, fit, flatness_of, loader, rows, samples, trainer, validate
from tests.wandb_reader import RecordedRun, read_run

INPUTS, TARGET = samples(20, seed=1).tensors
RANGE: dict[str, Any] = {"lower": -5.0, "upper": 5.0}
THREAT = ThreatModel(epsilon=0.6, **RANGE)
STEPS = 6
PATHS = ["attack", "noise", "random"]


class LearnedNet(Net):
    """Right on most of the samples that the monitors follow."""

    def __init__(self) -> None:
        super().__init__()
        optimizer = self.configure_optimizers()
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self(INPUTS), TARGET).backward()
            optimizer.step()


def monitor(**settings: Any) -> AttackTrajectoryMonitor:
    return AttackTrajectoryMonitor(**{"threat": THREAT, "steps": STEPS, **settings})


def by_hand(net: Net, path: Any = "attack", count: int = 20, **settings: Any) -> AttackTrajectory:
    arguments = {"path": path, "steps": STEPS, **settings}
    found = trajectory(net.eval(), net.head, INPUTS[:count], TARGET[:count], THREAT, **arguments)
    metric = AttackTrajectory(path_positions(path, STEPS))
    metric.update(found.points)
    return metric


def scalars(metric: AttackTrajectory, path: str = "attack") -> Any:
    values = {keys.trajectory_key(name, path): value.item() for name, value in metric.compute().items()}
    return pytest.approx(values, rel=1e-5)


def test_values_and_curves_are_those_of_the_attack_by_hand() -> None:
    net, watch = LearnedNet(), monitor()
    logged = validate(net, watch)
    expected = by_hand(net)
    assert flatness_of(logged, "trajectory/") == scalars(expected)
    assert logged["trajectory/success_rate"] > 0
    assert 0 < logged["trajectory/samples"] < 20
    (row,) = watch.trajectories()
    assert {name: row[name] for name in row if name != "curves"} == {
        "stage": "validate",
        "epoch": 0,
        "step": 0,
        "dataloader_idx": 0,
        "path": "attack",
    }
    assert row["curves"].keys() == expected.curves.keys()
    for name, values in expected.curves.items():
        assert row["curves"][name] == pytest.approx(values, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_keys_of_its_own(path: str) -> None:
    net, watch = LearnedNet(), monitor(path=PATHS)
    logged = flatness_of(validate(net, watch), "trajectory/")
    expected = by_hand(net, path)
    others = [f"trajectory/{name}_" for name in PATHS[1:]]
    own = {
        name: value
        for name, value in logged.items()
        if (name.startswith(f"trajectory/{path}_") if path != "attack" else not name.startswith(tuple(others)))
    }
    assert own == scalars(expected, path)
    assert watch.paths == PATHS == [row["path"] for row in watch.trajectories()]


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    net = LearnedNet()
    found = flatness_of(
        validate(net, monitor(path=PATHS), val=loader(20, seed=1, batch_size=batch_size)), "trajectory/"
    )
    assert found == pytest.approx(flatness_of(validate(net, monitor(path=PATHS)), "trajectory/"), rel=1e-5)


def test_settings_reach_the_attack() -> None:
    settings: dict[str, Any] = {"step_size": 0.05, "loss": "margin", "flatness_loss": "mse"}
    net = LearnedNet()
    assert flatness_of(validate(net, monitor(**settings)), "trajectory/") == scalars(by_hand(net, **settings))
    assert validate(net, monitor(**settings)) != validate(net, monitor())


def test_only_leading_samples_are_followed() -> None:
    net = LearnedNet()
    assert flatness_of(validate(net, monitor(max_samples=11)), "trajectory/") == scalars(by_hand(net, count=11))
    assert AttackTrajectoryMonitor().max_samples == 64


def test_logits_may_be_made_otherwise() -> None:
    net = LearnedNet()
    cold = monitor(logits_fn=lambda module, inputs: 3 * module(inputs))
    found, plain = validate(net, cold), validate(net, monitor())
    for name in ("clean_flatness", "samples"):  # those of the head, and of the predictions
        assert found[f"trajectory/{name}"] == pytest.approx(plain[f"trajectory/{name}"])
    curves = [watch.trajectories()[0]["curves"]["confidence_mean"][0] for watch in (cold,)]
    with torch.no_grad():
        logits = net(INPUTS)
    right = logits.argmax(1) == TARGET
    assert curves[0] == pytest.approx(float((3 * logits[right]).softmax(1).amax(1).mean()), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_is_wrong_everywhere_passes_the_sanity_check(seed: int) -> None:
    torch.manual_seed(seed)
    watch = monitor(path=PATHS)
    fit(Net(), watch, num_sanity_val_steps=2, max_epochs=2)
    assert [(row["epoch"], row["path"]) for row in watch.trajectories()] == [
        (epoch, path) for epoch in (0, 1) for path in PATHS
    ]


def test_nobody_classified_right() -> None:
    net = LearnedNet()
    wrong = [(x, (y + 1) % 3) for x, y in zip(INPUTS, net(INPUTS).argmax(1), strict=True)]
    watch = monitor()
    logged = flatness_of(validate(net, watch, val=rows(wrong)), "trajectory/")
    assert logged == {"trajectory/samples": 0, "trajectory/nonfinite": 0}
    assert watch.trajectories() == []


def test_every_nth_epoch_and_after_a_checkpoint(tmp_path: Path) -> None:
    whole, first, resumed = (monitor(every_n_epochs=2) for _ in range(3))
    fit(_seeded(), whole, max_epochs=5)
    fit(_seeded(), first, ModelCheckpoint(tmp_path, filename="last"), enable_checkpointing=True, max_epochs=3)
    with pytest.warns(UserWarning, match="Be aware that when using `ckpt_path`"):
        trainer(resumed, max_epochs=5).fit(Net(), loader(), loader(20, seed=1), ckpt_path=tmp_path / "last.ckpt")
    assert [row["epoch"] for row in whole.trajectories()] == [0, 2, 4]
    assert resumed.trajectories() == whole.trajectories()
    assert resumed.history() == whole.history()
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][first.state_key]
    assert state["trajectories"] == first.trajectories()
    with pytest.warns(UserWarning, match="Be aware that when using `ckpt_path`"):
        trainer(whole).validate(Net(), loader(20, seed=1), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert [row["stage"] for row in whole.trajectories()] == ["fit"] * 3 + ["validate"]


def _seeded() -> Net:
    torch.manual_seed(3)
    return Net()


def test_test_stage_and_several_dataloaders() -> None:
    watch, net = monitor(group="own"), LearnedNet()
    validate(net, watch, val=[loader(20, seed=1), loader(24)])
    names = flatness_of(watch.history()[0], "own/")
    assert {name.split("/dataloader_idx_")[1] for name in names} == {"0", "1"}
    assert [row["dataloader_idx"] for row in watch.trajectories()] == [0, 1]
    trainer(watch).test(net, loader(20, seed=1), verbose=False)
    assert "test_own/peak_flatness" in watch.history()[-1]
    assert watch.trajectories()[-1]["stage"] == "test"


def test_trajectories_are_a_copy() -> None:
    watch = monitor()
    validate(LearnedNet(), watch)
    watch.trajectories()[0].clear()
    assert watch.trajectories()[0]


def test_progress_bar_shows_the_valley_rate() -> None:
    watch = monitor(prog_bar=True, path=["noise", "attack"])
    runner = trainer(watch)
    runner.validate(LearnedNet(), loader(20, seed=1), verbose=False)
    shown = [name for name in runner.progress_bar_metrics if name.startswith("trajectory/")]
    assert shown in ([], ["trajectory/noise_valley_rate"])
    assert watch._prog_bar_key == "trajectory/noise_valley_rate"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": []}, r"`path` must name at least one path, got \[\]"),
        ({"path": "Square"}, r"`path` must be 'attack' \(PGD, .*got 'Square'"),
        ({"path": ["attack", "FAB"]}, "got 'FAB'"),
        ({"steps": 0}, "`steps` must be >= 1, got 0"),
        ({"step_size": 0.0}, r"`step_size` must be > 0 or None, got 0\.0"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*32\), got -1"),
        ({"loss": "hinge"}, "`loss` must be one of .*'hinge'"),
        ({"flatness_loss": "hinge"}, "`loss` must be one of .*'hinge'"),
        ({"max_samples": 0}, "`max_samples` must be an integer >= 1 or None, got 0"),
        ({"epsilon": 0.0, "threat": None}, r"`epsilon` must be > 0, got 0\.0"),
        ({"epsilon": 0.1}, "Pass either `epsilon` or `threat`"),
    ],
    ids=str,
)
def test_bad_arguments(settings: dict[str, Any], message: str, unchecked_shapes: Any) -> None:
    with unchecked_shapes, pytest.raises(ValueError, match=message):
        monitor(**settings)


def test_epsilon_of_pixels_is_the_default() -> None:
    assert AttackTrajectoryMonitor().threat == ThreatModel(epsilon=8 / 255)
    assert AttackTrajectoryMonitor("4/255").threat == ThreatModel(epsilon=4 / 255)


class Tokens(StepNet):
    """Two rows of logits for every sample."""

    def evaluate(self, batch: Any) -> Tensor:
        return self(batch[0].repeat_interleave(2, 0))


def test_needs_one_row_per_sample() -> None:
    with pytest.raises(ValueError, match=r"one row of logits for each of the 8 samples, got shape \(16, 3\)"):
        validate(Tokens(), monitor())


def test_needs_classes() -> None:
    batches = monitor(inputs_and_targets=lambda batch: (batch[0], None))
    with pytest.raises(ValueError, match=r"a tensor of inputs and one of classes, got Tensor and NoneType; pass"):
        validate(Net(), batches)


def test_inputs_out_of_range_are_an_error_before_training() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"`inputs` must lie in \[0\.0, 1\.0\]"):
        fit(net, AttackTrajectoryMonitor(0.1))
    assert net.training_steps == 0


# Weights & Biases


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    wandb.finish()


EPOCHS = 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordedRun, AttackTrajectoryMonitor, Path]:
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        watch = monitor(path=["attack", "noise"])
        fit(LearnedNet(), watch, logger=WandbLogger(offline=True, save_dir=place), max_epochs=EPOCHS)
        wandb.finish()
        return read_run(place), watch, place


def _tables(recorded: tuple[RecordedRun, AttackTrajectoryMonitor, Path], key: str) -> list[list[list[Any]]]:
    """Rows behind every chart under a key: position, name of the line, value."""
    run, _, place = recorded
    entries = [row[f"{key}_table"] for row in run.history if f"{key}_table" in row]
    files = {path.resolve() for path in place.rglob("*.table.json")}
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    return [json.loads(texts[Path(entry["path"]).name])["data"] for entry in entries]


def test_scalars_are_recorded_in_every_epoch(recorded: tuple[RecordedRun, AttackTrajectoryMonitor, Path]) -> None:
    run, watch, _ = recorded
    names = set().union(*watch.history()) - {"stage", "epoch", "step"}
    assert {keys.PEAK_FLATNESS, "trajectory/noise_peak_flatness"} <= names
    for name in names:
        expected = [row[name] for row in watch.history() if name in row]
        assert [row[name] for row in run.history if name in row] == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("path", ["attack", "noise"])
def test_a_chart_of_every_epoch_and_one_over_epochs(
    path: str, recorded: tuple[RecordedRun, AttackTrajectoryMonitor, Path]
) -> None:
    _, watch, _ = recorded
    curves = [row["curves"] for row in watch.trajectories() if row["path"] == path]
    charts = _tables(recorded, keys.trajectory_key("curves", path))
    assert len(charts) == len(curves) == EPOCHS
    for table, expected in zip(charts, curves, strict=True):
        lines = {name: [value for _, line, value in table if line == name] for name in {line for _, line, _ in table}}
        assert len(lines) == 4
        assert lines["mean confidence"] == pytest.approx(expected["confidence_mean"])
        flatness = [10**value for value in lines["log10 of the mean flatness"]]
        assert flatness == pytest.approx(expected["neuronwise_mean"])
    (over_epochs,) = _tables(recorded, keys.trajectory_key("over_epochs", path))
    assert len({line for _, line, _ in over_epochs}) == EPOCHS
    assert [value for _, _, value in over_epochs] == pytest.approx([
        v for one in curves for v in one["neuronwise_mean"]
    ])
    assert sorted({position for position, _, _ in over_epochs}) == curves[0]["position"]


def test_configuration(recorded: tuple[RecordedRun, AttackTrajectoryMonitor, Path]) -> None:
    found = recorded[0].config["trajectory_monitor"]
    expected = {"path": ["attack", "noise"], "steps": STEPS, "loss": "cross_entropy", "step_size": None}
    assert {name: found[name] for name in expected} == expected
    assert found["threat"]["epsilon"] == 0.6
    assert found["head"] == "head"


def test_figure_of_the_monitor(recorded: tuple[RecordedRun, AttackTrajectoryMonitor, Path]) -> None:
    _, watch, _ = recorded
    first = trajectory_figure(watch.trajectories(), "noise").axes[0]
    expected = [row["curves"]["neuronwise_mean"] for row in watch.trajectories() if row["path"] == "noise"]
    assert [line.get_ydata().tolist() for line in first.lines] == expected
