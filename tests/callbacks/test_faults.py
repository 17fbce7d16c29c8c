"""What goes wrong around a monitor ends a training, or lets it go on, exactly as without the monitor."""
# The signatures of steps and of attacks are what they are.

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchattacks import FGSM

from lightning_flatness import (
    AttackMonitor,
    AttackTrajectoryMonitor,
    HeadScalingMonitor,
    LocalRobustnessMonitor,
    RelativeFlatnessMonitor,
)
from lightning_flatness.attacks import AttackResult, ThreatModel, pgd
from lightning_flatness.callbacks._monitor import Monitor
from lightning_flatness.cli import show_curves
from lightning_flatness.tracking.csv_log import read_epochs
from tests.callbacks.conftest import Net, epochs, fit, samples

pytestmark = [
    pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy"),
    pytest.mark.filterwarnings("ignore:.* samples have features, logits or weights that are NaN"),
]

BALL: dict[str, Any] = {"epsilon": 0.3, "lower": -5.0, "upper": 5.0, "summary": False}
RATE = "attack/own_robust_accuracy"


def monitors(*, masking: bool = False) -> list[Monitor]:
    return [
        RelativeFlatnessMonitor(summary=False),
        AttackMonitor(**BALL, masking=masking, masking_samples=3),
        AttackTrajectoryMonitor(**BALL, steps=2),
        HeadScalingMonitor(**BALL, scales=(1.0, 10.0), steps=2),
        LocalRobustnessMonitor(**BALL, lipschitz_samples=2),
    ]


def end_of(make: Callable[[], Net], *callbacks: Any, **settings: Any) -> tuple[Net, BaseException | None]:
    """Train from the same start, and return the module and what ended the fit early."""
    torch.manual_seed(0)
    net = make()
    try:
        fit(net, *callbacks, **{"max_epochs": 3, **settings})
    except Exception as error:
        return net, error
    return net, None


def check_same_end(make: Callable[[], Net], watching: list[Monitor], **settings: Callable[[], Any]) -> Net:
    """Train with monitors and without; settings are made anew for each fit."""
    alone, first = end_of(make, **{name: value() for name, value in settings.items()})
    net, second = end_of(make, *watching, **{name: value() for name, value in settings.items()})
    if second is not None and first is None:
        raise second
    assert (type(first), str(first)) == (type(second), str(second))
    assert net.training_steps == alone.training_steps
    assert net.training == alone.training
    for ours, expected in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, expected) or torch.equal(ours.isnan(), expected.isnan())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    return net


class Failing:
    """An attack that fails in one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.net: Net | None = None

    def __call__(self, logits_fn: Any, inputs: Tensor, target: Tensor, **settings: Any) -> AttackResult:
        if self.net is not None and self.net.current_epoch == self.epoch and not self.net.trainer.sanity_checking:
            raise ArithmeticError("no step")
        return pgd(logits_fn, inputs, target, ThreatModel(epsilon=0.3, lower=-5.0, upper=5.0), steps=2, **settings)


class FailingFGSM(FGSM):  # type: ignore[misc]
    """One of torchattacks that does."""

    net: Net | None = None

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.net is not None and self.net.current_epoch == 1 and not self.net.trainer.sanity_checking:
            raise ArithmeticError("no step")
        adversarial: Tensor = super().forward(images, labels)
        return adversarial


@pytest.mark.parametrize("kind", ["own", "torchattacks"])
@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_attack_that_fails(kind: str, on_error: Any, tmp_path: Path) -> None:
    attack: Any = Failing(1) if kind == "own" else FailingFGSM(nn.Identity())

    class Told(Net):
        def on_fit_start(self) -> None:
            attack.net = self

    watching = AttackMonitor(**BALL, budget=None, attacks={"own": attack}, masking=False, on_error=on_error)
    others = RelativeFlatnessMonitor(summary=False)
    torch.manual_seed(0)
    net, logger = Told(), CSVLogger(tmp_path)

    def run() -> None:
        fit(net, watching, others, max_epochs=3, logger=logger)

    if on_error == "raise":
        with pytest.raises(ArithmeticError, match=r"^no step") as caught:
            run()
        assert "In the attack 'own'." in caught.value.__notes__
        measured, all_measured = [0], [0]
    else:
        message = r"^AttackMonitor failed in epoch 1 and leaves out that point: ArithmeticError: no step .*In the"
        with pytest.warns(UserWarning, match=message):
            run()
        measured, all_measured = [0, 2], [0, 1, 2]
    assert epochs(watching) == measured  # type: ignore[arg-type]
    assert epochs(others) == all_measured
    logged = read_epochs(Path(logger.log_dir) / "metrics.csv")
    assert [row["epoch"] for row in logged if RATE in row] == measured
    assert [row["epoch"] for row in logged if "flatness/relative_flatness" in row] == all_measured
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


class Diverging(Net):
    """Trains until its weights, its logits or its loss are no numbers any more."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def on_train_epoch_end(self) -> None:
        if self.what == "weights" and self.current_epoch == 1:
            with torch.no_grad():
                self.head.weight[0] = torch.nan

    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        factor = {"logits": torch.nan, "infinite": torch.inf}.get(self.what, 1.0)
        return logits * factor if self.current_epoch == 1 else logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss / 0 if self.what == "loss" and self.current_epoch == 1 else loss


@pytest.mark.parametrize("what", ["weights", "logits", "infinite", "loss"])
def test_training_that_diverges(what: str) -> None:
    watching = monitors(masking=True)
    watching.append(LocalRobustnessMonitor(**BALL, lipschitz="certified", group="certified"))
    check_same_end(lambda: Diverging(what), watching)
    for monitor in watching:
        assert epochs(monitor) == [0, 1, 2]  # type: ignore[arg-type]
        numbers = [value for row in monitor.history() for value in row.values() if isinstance(value, float)]
        assert torch.tensor(numbers).isfinite().all()


class Short(IterableDataset[Any]):
    """Ends before what it has announced."""

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[Any]:
        yield from (samples(12)[index] for index in range(12))


class Broken(Short):
    """Fails in the middle of an epoch."""

    def __init__(self, net_epoch: list[int]) -> None:
        self.passes = net_epoch

    def __iter__(self) -> Iterator[Any]:
        self.passes.append(0)
        yield from super().__iter__()
        if len(self.passes) == 3:  # the sanity check, and the first epoch
            raise OSError("the disk is gone")


VALIDATIONS: dict[str, dict[str, Callable[[], Any]]] = {
    "few batches": {"limit_val_batches": lambda: 2},
    "shorter than announced": {"val": lambda: DataLoader(Short(), 8)},
    "fails in the middle": {"val": lambda: DataLoader(Broken([]), 8)},
}


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("kind", VALIDATIONS)
def test_validation_that_ends_early(kind: str) -> None:
    watching = monitors()
    check_same_end(Net, watching, **VALIDATIONS[kind])
    complete = [0] if kind == "fails in the middle" else [0, 1, 2]
    assert [epochs(monitor) for monitor in watching] == [complete] * len(watching)  # type: ignore[arg-type]


class Refusing(CSVLogger):
    """Fails where it is told to."""

    def __init__(self, place: Path, method: str) -> None:
        super().__init__(place)
        self.method = method

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.method == "log_metrics" and step is not None and step > 2 and "val_loss" in metrics:
            raise ConnectionError("no answer")
        super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self.method == "finalize":
            raise ConnectionError("no end")


@pytest.mark.parametrize("method", ["log_metrics", "finalize"])
def test_logger_that_fails_by_itself(method: str, tmp_path: Path) -> None:
    watching = monitors()

    def logger() -> Logger:
        return Refusing(tmp_path, method)

    torch.manual_seed(0)
    check_same_end(Net, watching, logger=logger)
    measured = epochs(watching[0])  # type: ignore[arg-type]
    assert measured == ([0, 1, 2] if method == "finalize" else [0, 1])


def test_early_stopping_on_a_value_that_is_missing_at_first() -> None:
    """Lightning's own rule: what it is to watch must be there, unless it is told otherwise."""

    def stopping(*, strict: bool) -> EarlyStopping:
        return EarlyStopping(RATE, mode="max", patience=1, strict=strict, check_on_train_epoch_end=False)

    def run(*, strict: bool) -> AttackMonitor:
        attack = Failing(0)

        class Told(Net):
            def on_fit_start(self) -> None:
                attack.net = self

        watching = AttackMonitor(**BALL, budget=None, attacks={"own": attack}, masking=False, on_error="warn")
        fit(Told(), watching, stopping(strict=strict), max_epochs=10)
        return watching

    with (
        pytest.warns(UserWarning, match="leaves out that point"),
        pytest.raises(RuntimeError, match="is not available"),
    ):
        run(strict=True)
    with pytest.warns(UserWarning, match="leaves out that point"):
        assert 1 < len(run(strict=False).history()) < 9


def test_pictures_that_cannot_be_written_cost_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path)
    fit(Net(), RelativeFlatnessMonitor(summary=False), logger=logger, max_epochs=2)
    (Path(logger.log_dir) / "curves.png").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match=r"^The picture .*curves\.png is not written: OSError: .*No space left"):
        show_curves(Path(logger.log_dir) / "metrics.csv")
    assert "Curves:" in capsys.readouterr().out
