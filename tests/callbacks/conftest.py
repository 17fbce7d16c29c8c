"""Tiny modules, data and trainers for the tests of the monitors."""
# The signatures of steps are Lightning's.
# ruff: noqa: ARG002

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_flatness import RelativeFlatnessMonitor
from lightning_flatness.metrics import HeadTopEigenvalue, RelativeFlatness

DIM, HIDDEN, CLASSES = 4, 8, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only wait for each other on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(LightningModule):
    """Two linear layers; keeps what entered and left the head in every evaluation step."""

    def __init__(self, body: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body or nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU())
        self.head = head or nn.Linear(HIDDEN, CLASSES)
        self.seen: list[tuple[Tensor, ...]] = []
        self.forwards = 0
        self.training_steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += 1
        features = self.body(inputs)
        logits = self.head(features)
        if not self.training:
            weight = self.head.weight if isinstance(self.head, nn.Linear) else torch.empty(0)
            self.seen.append((features.clone(), weight.detach().clone(), logits.clone()))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.training_steps += 1
        inputs, target = batch
        loss = nn.functional.cross_entropy(self(inputs), target)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, target = batch
        logits = self(inputs)
        self.seen[-1] += (target.clone(),)
        self.log("val_loss", nn.functional.cross_entropy(logits, target))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch[0])
        self.seen[-1] += (batch[1].clone(),)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class TwoViews(Net):
    """Classifies each input and its mirror image, as test-time augmentation does."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for sign in (1, -1):
            self(sign * batch[0])
            self.seen[-1] += (batch[1],)


class StepNet(Net):
    """Evaluates ``evaluate(batch)`` and records nothing: for batches and heads of any form."""

    def evaluate(self, batch: Any) -> Any:
        return self(batch[0])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(batch)


class Spy(Callback):
    """Calls a function at one hook of the trainer."""

    def __init__(self, hook: str, function: Any) -> None:
        setattr(self, hook, function)


def samples(count: int = 24, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, DIM, generator=generator)
    return TensorDataset(inputs, torch.randint(CLASSES, (count,), generator=generator))


def loader(count: int = 24, seed: int = 0, batch_size: int = 8, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(samples(count, seed), batch_size, **kwargs)


def rows(dataset: Sequence[Any] | Dataset[Any], batch_size: int = 8) -> DataLoader[Any]:
    """A loader of a plain list of samples: dictionaries, strings, …"""
    return DataLoader(dataset, batch_size)  # type: ignore[arg-type]


def trainer(*callbacks: Callback, **kwargs: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 1, "log_every_n_steps": 1}
    return Trainer(callbacks=list(callbacks), **{**quiet, **settings, **kwargs})


def fit(module: LightningModule, *callbacks: Callback, train: Any = None, val: Any = None, **kwargs: Any) -> Trainer:
    """Train on a few samples and return the trainer."""
    made = trainer(*callbacks, **kwargs)
    made.fit(module, loader() if train is None else train, loader(20, seed=1) if val is None else val)
    return made


def validate(module: LightningModule, *callbacks: Callback, val: Any = None, **kwargs: Any) -> dict[str, float]:
    """Validate without training and return what was logged, of all dataloaders together."""
    data = loader(20, seed=1) if val is None else val
    logged = trainer(*callbacks, **kwargs).validate(module, data, verbose=False)
    return {name: value for part in logged for name, value in part.items()}


def by_hand(seen: Sequence[tuple[Tensor, ...]], **settings: Any) -> dict[str, float]:
    """Every value of the monitor from ``(features, weight, logits, target)`` of each batch."""
    metric = RelativeFlatness(**settings)
    eigenvalue = HeadTopEigenvalue(loss=settings.get("loss", "cross_entropy"))
    with torch.inference_mode(mode=False), torch.no_grad():
        for batch in seen:
            features, weight, logits, target = (part.clone() for part in batch)
            metric.update(features, weight, logits, target)
            eigenvalue.update(features, logits, target)
        values = {**metric.compute(), "top_eigenvalue": eigenvalue.compute()}
    return {f"flatness/{name}": float(value) for name, value in values.items()}


def approx(values: Mapping[str, float]) -> Any:
    """Logged values are float32."""
    return pytest.approx(dict(values), rel=1e-6, abs=1e-30)


def flatness_of(logged: Mapping[str, Any], prefix: str = "flatness/") -> dict[str, float]:
    return {name: float(value) for name, value in logged.items() if name.startswith(prefix)}


def curve(monitor: RelativeFlatnessMonitor, key: str = "flatness/relative_flatness") -> list[float]:
    return [row[key] for row in monitor.history()]


def epochs(monitor: RelativeFlatnessMonitor) -> list[int]:
    return [row["epoch"] for row in monitor.history()]
