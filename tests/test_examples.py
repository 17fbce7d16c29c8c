"""The commands of the README, on the real data, and what they leave behind."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import wandb
from lightning.pytorch import Trainer
from torchvision.datasets import cifar

from examples import lipschitz
from examples.adversarial_training import AdversarialDigitClassifier
from examples.cifar10 import CIFAR10
from examples.lipschitz import LipschitzDigitClassifier
from examples.mnist import DigitClassifier, MNISTDigits
from examples.sam import SAM, SharpnessAwareDigitClassifier
from lightning_flatness.cli import main
from lightning_flatness.tracking import keys
from lightning_flatness.tracking.csv_log import read_epochs
from tests.processes import ROOT, finished, run_module, start
from tests.wandb_reader import RecordedRun, read_run

EPOCHS = 3
pytestmark = pytest.mark.slow


class FinishedFit(NamedTuple):
    folder: Path
    output: str


def ran(folder: Path, target: Callable[..., object], *arguments: str) -> str:
    """Prints of a process that calls ``target`` in ``folder``."""
    output = folder / "output"
    settings = {"HOME": str(folder), "NETRC": str(folder / "netrc"), "COLUMNS": "120"}
    code = finished(start(target, *arguments, output=output, folder=folder, environment=settings))
    printed = output.read_text()
    assert code == 0, printed
    return printed


def fit(*arguments: str) -> None:
    run_module("lightning_flatness", "fit", *arguments)
    wandb.finish()  # as at the end of any process, but not of one that was forked


@pytest.fixture(scope="module")
def mnist_fit(tmp_path_factory: pytest.TempPathFactory) -> FinishedFit:
    folder = tmp_path_factory.mktemp("mnist")
    config = ROOT / "configs" / "mnist.yaml"
    return FinishedFit(folder, ran(folder, fit, f"--config={config}", f"--trainer.max_epochs={EPOCHS}"))


@pytest.fixture(scope="module")
def mnist_run(mnist_fit: FinishedFit) -> RecordedRun:
    return read_run(mnist_fit.folder / "logs" / "wandb")


def test_wandb_run_holds_every_documented_key_for_every_epoch(mnist_run: RecordedRun) -> None:
    validations = [row for row in mnist_run.history if keys.RELATIVE_FLATNESS in row]
    assert len(validations) == EPOCHS
    expected = {*keys.FLATNESS_KEYS, "val_loss", "val_accuracy", "trainer/global_step", "epoch"}
    for row in validations:
        assert expected <= row.keys()
        assert {"correct", "wrong"} == {
            part for part in ("correct", "wrong") if any(name.startswith(keys.histogram_key(part)) for name in row)
        }


def test_wandb_run_holds_our_attack_and_one_of_torchattacks(mnist_run: RecordedRun) -> None:
    for label in ("linf_0_1", "pgd", keys.WORST_CASE):
        key = keys.attack_key(label, keys.ROBUST_ACCURACY)
        assert len([row[key] for row in mnist_run.history if key in row]) == EPOCHS
    assert [row[keys.ALARM] for row in mnist_run.history if keys.ALARM in row] == [0] * EPOCHS
    assert any(keys.ADVERSARIAL_IMAGES in row for row in mnist_run.history)


def test_wandb_run_holds_bounds_that_hold(mnist_run: RecordedRun) -> None:
    assert [row[keys.VIOLATION_RATE] for row in mnist_run.history if keys.VIOLATION_RATE in row] == [0] * EPOCHS
    accuracies = [keys.accuracy_key(radius, certified=False) for radius in (0.025, 0.05, 0.1, 0.2)]
    last = [row for row in mnist_run.history if set(accuracies) <= row.keys()][-1]
    assert [last[key] for key in accuracies] == sorted((last[key] for key in accuracies), reverse=True)
    assert any(name.startswith(keys.BOUND_CURVE) for row in mnist_run.history for name in row)


def test_wandb_run_holds_configuration_and_summaries(mnist_run: RecordedRun) -> None:
    settings = mnist_run.config["flatness_monitor"]
    assert settings["head"] == "head"
    assert settings["variant"] == "neuronwise"
    assert mnist_run.metrics[keys.RELATIVE_FLATNESS].step_metric == "trainer/global_step"
    values = [row[keys.RELATIVE_FLATNESS] for row in mnist_run.history if keys.RELATIVE_FLATNESS in row]
    expected = {"min": min(values), "max": max(values), "last": values[-1]}
    assert mnist_run.summary[keys.RELATIVE_FLATNESS] == expected


def test_csv_log_and_wandb_run_agree(mnist_fit: FinishedFit, mnist_run: RecordedRun) -> None:
    (metrics,) = mnist_fit.folder.rglob("metrics.csv")
    logged = [row[keys.MEDIAN] for row in mnist_run.history if keys.MEDIAN in row]
    assert [row[keys.MEDIAN] for row in read_epochs(metrics)] == pytest.approx(logged, rel=1e-6)


def test_fit_ends_with_a_table_and_a_picture(mnist_fit: FinishedFit) -> None:
    (picture,) = mnist_fit.folder.rglob("curves.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = mnist_fit.output[mnist_fit.output.index("Relative flatness κ") :]
    assert all(word in table for word in ("epoch", "mean", "wrong", "H_z"))  # headers may take two lines
    assert "alarm" in table
    assert "Robustness within a radius: estimated (no guarantee)" in table
    assert str(picture.relative_to(mnist_fit.folder)) in table


def test_checkpoint_follows_flatness(mnist_fit: FinishedFit) -> None:
    (checkpoint,) = mnist_fit.folder.rglob("flattest.ckpt")
    assert list(mnist_fit.folder.rglob("lowest_loss.ckpt"))
    state = torch.load(checkpoint, weights_only=True)
    (history,) = (value["history"] for name, value in state["callbacks"].items() if "RelativeFlatness" in name)
    assert history[-1]["epoch"] == state["epoch"]


def test_only_a_lipschitz_network_has_a_certificate_worth_something() -> None:
    modules = {"ordinary": DigitClassifier(), "1-Lipschitz": LipschitzDigitClassifier(width=64)}
    results = {name: lipschitz.measure(module, 2, samples=150) for name, module in modules.items()}
    for row in results.values():
        for radius in lipschitz.RADII:
            attacked = row[keys.attack_key(keys.threat_label("l2", radius), keys.ROBUST_ACCURACY)]
            assert row[keys.accuracy_key(radius, certified=True)] <= attacked
    assert results["1-Lipschitz"]["bound/certified_accuracy_0_5"] > 0.3
    assert results["ordinary"]["bound/certified_accuracy_0_5"] < 0.01
    lines = lipschitz.table(results).splitlines()
    assert len(lines) == 1 + len(lipschitz.RADII)
    assert [axes.get_title().split(",")[0] for axes in lipschitz.figure(results).axes] == list(results)


def test_missing_cifar10_is_a_clear_message() -> None:
    with pytest.raises(FileNotFoundError, match="`root` must hold the folder cifar-10-batches-py, got 'nowhere'"):
        CIFAR10("nowhere")


def fit_unchecked(*arguments: str) -> None:
    """Fit to files that torchvision would refuse: it knows the real ones by their checksums."""
    cifar.check_integrity = lambda path, md5=None: True  # noqa: ARG005 - its signature
    fit(*arguments)


def test_cifar10_example_trains(tmp_path: Path) -> None:
    """Same files as the real ones, with random pixels."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        part = {
            "data": torch.randint(0, 256, (8, 3072), dtype=torch.uint8).numpy(),
            "labels": torch.randint(0, 10, (8,)).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(part))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(index) for index in range(10)]}))
    ran(
        tmp_path,
        fit_unchecked,
        f"--config={ROOT / 'configs' / 'cifar10_resnet18.yaml'}",
        "--data.root=data",
        "--data.batch_size=16",
        "--data.num_workers=0",
        "--trainer.max_epochs=1",
    )
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert keys.RELATIVE_FLATNESS in read_epochs(metrics)[0]


@pytest.mark.parametrize("variant", ["adversarial", "label_smoothing", "sam", "weight_decay"])
def test_variants_are_read_on_top_of_the_mnist_configuration(
    variant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls
    configs = [ROOT / "configs" / "mnist.yaml", ROOT / "configs" / "variants" / f"{variant}.yaml"]
    arguments = ["fit", *(f"--config={path}" for path in configs), "--print_config"]
    monkeypatch.setattr(sys, "argv", ["lightning-flatness", *arguments])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    printed = capsys.readouterr().out
    assert printed.count(f"name: {variant}") == 2
    assert "lightning_flatness.AttackMonitor" in printed


@pytest.mark.filterwarnings("ignore:You are using `fast_dev_run`")
@pytest.mark.parametrize("module", [AdversarialDigitClassifier(0.2, steps=2), SharpnessAwareDigitClassifier()])
def test_variants_train(module: DigitClassifier) -> None:
    before = module.head.weight.detach().clone()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    Trainer(fast_dev_run=2, accelerator="cpu", **quiet).fit(module, MNISTDigits())
    assert not torch.equal(module.head.weight, before)


def test_sam_steps_along_the_gradient_at_the_worst_place_nearby() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
    optimizer = SAM([weight], radius=0.5, lr=0.1)
    places: list[list[float]] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum() / 2
        loss.backward()
        places.append(weight.tolist())
        return loss

    assert optimizer.step(closure) == 2.0
    assert places == [[2.0, 0.0], [2.5, 0.0]]
    assert weight.tolist() == pytest.approx([1.9, 0.0])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_measure_together(strategy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    options = ["--strategy", strategy, "--accelerator", "cpu", "--epochs", "1"]
    # Not forked: Lightning starts the second process by the command of the first.
    command = [sys.executable, "-m", "examples.several_processes", *options]
    ended = subprocess.run(  # noqa: S603 - our own command
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("What the monitors measured") == 1
    assert " attack/linf_0_1_robust_accuracy " in ended.stdout
