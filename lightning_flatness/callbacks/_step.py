"""What a monitor looks at: one evaluation step, and the module while it runs."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn


class Step(NamedTuple):
    """One evaluation step of a module, after it has run."""

    trainer: Trainer
    module: LightningModule
    inputs: Any
    target: Tensor | None
    dataloader_idx: int
    batch_idx: int


@runtime_checkable
class Probe(Protocol):
    """Records parts of a module's forward while it is open."""

    @property
    def is_open(self) -> bool:
        """Whether something is being recorded."""

    def attach(self, module: nn.Module) -> None:
        """Hook the module; does nothing where hooks are already."""

    def open(self) -> None:
        """Start to record."""

    def stop(self) -> None:
        """Stop recording and drop what was recorded."""

    def detach(self) -> None:
        """Remove every hook."""

    def paused(self) -> AbstractContextManager[None]:
        """Record nothing of what runs inside."""
