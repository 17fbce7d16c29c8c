"""Every argument can be written in YAML."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import AdaptiveAttack, ThreatModel
from lightning_flatness.callbacks._batches import default_inputs_and_targets
from lightning_flatness.functional.losses import CrossEntropy, MeanSquaredError
from tests.callbacks.conftest import Net, flatness_of, validate

# Lightning's doubts about arguments that do not come from a command line.
pytestmark = pytest.mark.filterwarnings("ignore:.*LightningCLI's args parameter")


@pytest.fixture(autouse=True)
def _quiet_jsonargparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning calls methods of jsonargparse that the latter has deprecated since."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


SHARED: dict[str, Any] = {
    "inputs_and_targets": "lightning_flatness.callbacks._batches.default_inputs_and_targets",
    "every_n_epochs": 2,
    "max_samples": 10,
    "dataloaders": [0],
    "seed": 3,
    "on_error": "warn",
    "summary": False,
}
BALL: dict[str, Any] = {
    "norm": "l2",
    "lower": -5.0,
    "upper": 5.0,
    "mean": [0.0],
    "std": [1.0],
}
EVERY_ARGUMENT: dict[str, Any] = {
    "variant": "layerwise",
    "loss": "cross_entropy",
    "include_bias": True,
    "top_eigenvalue_samples": 7,
    "num_classes": 3,
    "log_histograms": False,
    "prog_bar": True,
    "group": "layerwise",
    "head": "head",
    **SHARED,
}


def _logits(module: nn.Module, inputs: Tensor) -> Tensor:
    logits: Tensor = module(inputs)
    return logits


_own_attack = AdaptiveAttack(ThreatModel("l2", 0.2), "standard")
EVERY_ATTACK_ARGUMENT: dict[str, Any] = {
    "epsilon": 0.5,
    **BALL,
    "budget": "standard",
    "attacks": {
        "APGD": None,
        "short": {"attack": "PGDL2", "steps": 3},
        "own": "tests.callbacks.test_config._own_attack",
    },
    "epsilons": [0.1, 0.2],
    "logits_fn": "tests.callbacks.test_config._logits",
    "autocast_dtype": "bfloat16",
    "loss_threshold": 1.0,
    "num_classes": 3,
    "masking": False,
    "masking_samples": 50,
    "masking_every_n": 2,
    "num_examples": 1,
    "max_time_fraction": 0.5,
    "prog_bar": False,
    "group": "own",
    **SHARED,
}


EVERY_BOUND_ARGUMENT: dict[str, Any] = {
    "epsilon": "128/255",
    **BALL,
    "lipschitz": "certified",
    "lipschitz_samples": 20,
    "radii": [0.1, 0.5],
    "method": "trace",
    "cubic_constant": 0.0,
    "logits_fn": "tests.callbacks.test_config._logits",
    "prog_bar": True,
    "group": "own",
    "head": "head",
    **SHARED,
}

EVERY_TRAJECTORY_ARGUMENT: dict[str, Any] = {
    "epsilon": "128/255",
    **BALL,
    "path": ["attack", "random"],
    "steps": 5,
    "step_size": 0.1,
    "loss": "margin",
    "flatness_loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
    "logits_fn": "tests.callbacks.test_config._logits",
    "prog_bar": True,
    "group": "own",
    "head": "head",
    **SHARED,
}


EVERY_SCALING_ARGUMENT: dict[str, Any] = {
    "epsilon": "128/255",
    "scales": [0.5, 20],
    **BALL,
    "steps": 3,
    "attack_samples": 7,
    "logits_fn": "tests.callbacks.test_config._logits",
    "prog_bar": True,
    "group": "own",
    "head": "head",
    **SHARED,
}


def _parse(tmp_path: Path, **arguments: Any) -> RelativeFlatnessMonitor:
    callbacks = _callbacks(tmp_path, "RelativeFlatnessMonitor", arguments)
    (monitor,) = [one for one in callbacks if isinstance(one, RelativeFlatnessMonitor)]
    return monitor


def _callbacks(tmp_path: Path, monitor: str, arguments: dict[str, Any]) -> list[Any]:
    """Read a file as ``lightning-flatness fit --config`` reads it."""
    callback = {"class_path": f"lightning_flatness.{monitor}", "init_args": arguments}
    file = tmp_path / "config.yaml"
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    file.write_text(yaml.safe_dump({"trainer": {**quiet, "callbacks": [callback]}}))
    settings: dict[str, Any] = {"run": False, "save_config_callback": None, "seed_everything_default": False}
    callbacks: list[Any] = LightningCLI(Net, args=["--config", str(file)], **settings).trainer.callbacks
    return callbacks


def _parse_attack(tmp_path: Path, **arguments: Any) -> AttackMonitor:
    (monitor,) = [one for one in _callbacks(tmp_path, "AttackMonitor", arguments) if isinstance(one, AttackMonitor)]
    return monitor


class TestAttackMonitor:
    def test_every_argument_is_in_this_test(self) -> None:
        parser = ArgumentParser()
        parser.add_class_arguments(AttackMonitor, "monitor")
        assert set(parser.get_defaults().monitor.as_dict()) == {*EVERY_ATTACK_ARGUMENT, "threat", "head"}

    def test_every_argument_can_be_written(self, tmp_path: Path) -> None:
        monitor = _parse_attack(tmp_path, **EVERY_ATTACK_ARGUMENT)
        found = {name: getattr(monitor, name) for name in EVERY_ATTACK_ARGUMENT if name in vars(monitor)}
        assert {name: EVERY_ATTACK_ARGUMENT[name] for name in found} | {"attacks": monitor.attacks} == found
        assert len(found) > 10
        assert monitor.threat == ThreatModel("l2", 0.5, -5.0, 5.0, [0.0], [1.0])
        assert set(monitor.attacks) == {"l2_0_5", "apgd", "short", "own"}
        assert ", steps=3" in repr(monitor.attacks["short"])
        assert monitor.attacks["own"] is _own_attack

    def test_threat_as_one_argument(self, tmp_path: Path) -> None:
        threat = {"norm": "l2", "epsilon": 0.25, "lower": None, "upper": None}
        monitor = _parse_attack(tmp_path, threat=threat, head="head", masking=False)
        assert monitor.threat == ThreatModel("l2", 0.25, None, None)
        assert "attack/l2_0_25_success_rate" in validate(Net(), monitor)


class TestLocalRobustnessMonitor:
    @staticmethod
    def parse(tmp_path: Path, **arguments: Any) -> LocalRobustnessMonitor:
        callbacks = _callbacks(tmp_path, "LocalRobustnessMonitor", arguments)
        (monitor,) = [one for one in callbacks if isinstance(one, LocalRobustnessMonitor)]
        return monitor

    def test_every_argument_is_in_this_test(self) -> None:
        parser = ArgumentParser()
        parser.add_class_arguments(LocalRobustnessMonitor, "monitor")
        assert set(parser.get_defaults().monitor.as_dict()) == {*EVERY_BOUND_ARGUMENT, "threat"}

    def test_every_argument_can_be_written(self, tmp_path: Path) -> None:
        monitor = self.parse(tmp_path, **EVERY_BOUND_ARGUMENT)
        assert monitor.threat == ThreatModel("l2", 128 / 255, -5.0, 5.0, [0.0], [1.0])
        assert list(monitor.radii.values()) == [0.1, 0.5]
        plain = EVERY_BOUND_ARGUMENT.keys() & vars(monitor).keys() - {"epsilon", "radii"}
        assert len(plain) == 10
        assert {name: getattr(monitor, name) for name in plain} == {name: EVERY_BOUND_ARGUMENT[name] for name in plain}
        assert "own/certified_accuracy_0_5" in validate(Net(), monitor)

    @pytest.mark.parametrize("lipschitz", [2, 2.5, "estimated"])
    def test_constant_is_a_number_or_a_word(self, lipschitz: Any, tmp_path: Path) -> None:
        threat = {"norm": "l2", "epsilon": 0.25, "lower": None, "upper": None}
        logged = validate(Net(), self.parse(tmp_path, threat=threat, lipschitz=lipschitz))
        if lipschitz == "estimated":
            assert "bound/lipschitz_estimated" in logged
        else:
            assert logged["bound/lipschitz_certified"] == lipschitz


class TestAttackTrajectoryMonitor:
    @staticmethod
    def parse(tmp_path: Path, **arguments: Any) -> AttackTrajectoryMonitor:
        callbacks = _callbacks(tmp_path, "AttackTrajectoryMonitor", arguments)
        (monitor,) = [one for one in callbacks if isinstance(one, AttackTrajectoryMonitor)]
        return monitor

    def test_every_argument_is_in_this_test(self) -> None:
        parser = ArgumentParser()
        parser.add_class_arguments(AttackTrajectoryMonitor, "monitor")
        assert set(parser.get_defaults().monitor.as_dict()) == {*EVERY_TRAJECTORY_ARGUMENT, "threat"}

    def test_every_argument_can_be_written(self, tmp_path: Path) -> None:
        monitor = self.parse(tmp_path, **EVERY_TRAJECTORY_ARGUMENT)
        assert monitor.threat == ThreatModel("l2", 128 / 255, -5.0, 5.0, [0.0], [1.0])
        assert monitor.paths == ["attack", "random"]
        assert isinstance(monitor.flatness_loss, CrossEntropy)
        assert monitor.flatness_loss.label_smoothing == 0.1
        arguments = EVERY_TRAJECTORY_ARGUMENT
        plain = arguments.keys() & vars(monitor).keys() - {"flatness_loss"}
        assert len(plain) == 10
        assert {name: getattr(monitor, name) for name in plain} == {name: arguments[name] for name in plain}
        assert "own/random_peak_flatness" in validate(Net(), monitor)

    def test_one_path_is_a_name(self, tmp_path: Path) -> None:
        assert self.parse(tmp_path, path="noise").paths == ["noise"]


def test_every_argument_is_in_this_test() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(RelativeFlatnessMonitor, "monitor")
    assert set(parser.get_defaults().monitor.as_dict()) == set(EVERY_ARGUMENT)


def test_every_argument_can_be_written(tmp_path: Path) -> None:
    monitor = _parse(tmp_path, **EVERY_ARGUMENT)
    found = {name: getattr(monitor, name) for name in EVERY_ARGUMENT if name in vars(monitor)}
    assert found == {name: EVERY_ARGUMENT[name] for name in found if name != "loss"} | {"loss": monitor.loss}
    assert {"top_eigenvalue_samples", "log_histograms", "group", "every_n_epochs", "max_samples"} <= set(found)
    assert monitor._inputs_and_targets is default_inputs_and_targets
    assert monitor.variant == "layerwise"
    assert monitor.include_bias
    assert monitor._probe._head == "head"
    assert len(flatness_of(validate(Net(), monitor), "layerwise/")) == 17


def test_defaults_can_be_left_out(tmp_path: Path) -> None:
    monitor = _parse(tmp_path)
    assert monitor.state_key == RelativeFlatnessMonitor().state_key
    assert monitor._probe._head is None
    assert isinstance(monitor.loss, CrossEntropy)


@pytest.mark.parametrize("name", [None, "head", "body.0"])
def test_head_is_a_name(name: str | None, tmp_path: Path) -> None:
    assert _parse(tmp_path, head=name)._probe._head == name


def focal_like(logits: Any, target: Any) -> Any:
    return nn.functional.cross_entropy(logits, target, reduction="none") ** 2


@pytest.mark.parametrize(
    ("loss", "kind", "settings"),
    [
        ("mse", MeanSquaredError, {}),
        ({"class_path": "torch.nn.CrossEntropyLoss"}, CrossEntropy, {"label_smoothing": 0.0}),
        (
            {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
            CrossEntropy,
            {"label_smoothing": 0.1},
        ),
        (
            {"class_path": "lightning_flatness.functional.losses.CrossEntropy", "init_args": {"temperature": 2.0}},
            CrossEntropy,
            {"temperature": 2.0},
        ),
        (
            {
                "class_path": "lightning_flatness.functional.losses.CrossEntropy",
                "init_args": {"weight": [1.0, 2.0, 3.0]},
            },
            CrossEntropy,
            {"weight": [1.0, 2.0, 3.0]},
        ),
    ],
    ids=str,
)
def test_loss_is_a_name_or_a_class(loss: Any, kind: type, settings: dict[str, Any], tmp_path: Path) -> None:
    found = _parse(tmp_path, loss=loss).loss
    assert type(found) is kind
    assert {name: getattr(found, name) for name in settings} == settings


def test_loss_is_a_function(tmp_path: Path) -> None:
    found = _parse(tmp_path, loss="torch.nn.functional.cross_entropy").loss
    assert type(found).__name__ == "AutogradLoss"


@pytest.mark.parametrize(
    "wrong",
    [
        {"variant": "flat"},
        {"on_error": "ignore"},
        {"every_n_epochs": "often"},
        {"epsilon": 0.1},
        {"inputs_and_targets": "nowhere.at_all"},
        {"loss": {"class_path": "torch.nn.NoSuchLoss"}},
    ],
    ids=str,
)
def test_wrong_arguments_are_rejected(
    wrong: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parse(tmp_path, **wrong)
    assert next(iter(wrong)) in capsys.readouterr().err


class TestHeadScalingMonitor:
    @staticmethod
    def parse(tmp_path: Path, **arguments: Any) -> HeadScalingMonitor:
        callbacks = _callbacks(tmp_path, "HeadScalingMonitor", arguments)
        (monitor,) = [one for one in callbacks if isinstance(one, HeadScalingMonitor)]
        return monitor

    def test_every_argument_is_in_this_test(self) -> None:
        parser = ArgumentParser()
        parser.add_class_arguments(HeadScalingMonitor, "monitor")
        assert set(parser.get_defaults().monitor.as_dict()) == {*EVERY_SCALING_ARGUMENT, "threat"}

    def test_every_argument_can_be_written(self, tmp_path: Path) -> None:
        monitor = self.parse(tmp_path, **EVERY_SCALING_ARGUMENT)
        assert monitor.threat == ThreatModel("l2", 128 / 255, -5.0, 5.0, [0.0], [1.0])
        assert monitor.scales == (0.5, 20.0)
        plain = ("steps", "attack_samples", "group", "every_n_epochs", "max_samples", "dataloaders", "seed", "on_error")
        assert {name: getattr(monitor, name) for name in plain} == {
            name: EVERY_SCALING_ARGUMENT[name] for name in plain
        }
        assert "own/robust_accuracy_margin_20" in validate(Net(), monitor)

    def test_threat_as_one_argument(self, tmp_path: Path) -> None:
        threat = {"norm": "l2", "epsilon": 0.25, "lower": None, "upper": None}
        assert self.parse(tmp_path, threat=threat).threat == ThreatModel("l2", 0.25, None, None)
        assert self.parse(tmp_path).threat is None
