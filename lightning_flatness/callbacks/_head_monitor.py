"""What the monitors of a linear head share."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_flatness.callbacks._batches import InputsAndTargets, batch_length, join_calls, leading_samples
from lightning_flatness.callbacks._monitor import Monitor, OnError
from lightning_flatness.callbacks._observe import HeadProbe
from lightning_flatness.callbacks._returned import doubt
from lightning_flatness.callbacks._step import Step
from lightning_flatness.functional._affine import HeadCall


class Observation(NamedTuple):
    """One batch as the head saw it, without the samples that do not count."""

    head: HeadCall
    target: Tensor | None
    dataloader_idx: int
    samples: int
    step: Step


class HeadMonitor(Monitor):
    """Base of the monitors that measure what enters and leaves the head.

    Args:
        head: see the subclasses.
        group: see the subclasses.
        inputs_and_targets: see the subclasses.
        every_n_epochs: see the subclasses.
        max_samples: see the subclasses.
        dataloaders: see the subclasses.
        seed: see the subclasses.
        on_error: see the subclasses.
        summary: see the subclasses.
        prog_bar_key: key shown in the progress bar, or None.
    """

    _probe: HeadProbe

    def __init__(
        self,
        *,
        head: nn.Module | str | None,
        group: str,
        inputs_and_targets: InputsAndTargets | None,
        every_n_epochs: int,
        max_samples: int | None,
        dataloaders: Sequence[int] | None,
        seed: int,
        on_error: OnError,
        summary: bool,
        prog_bar_key: str | None,
    ) -> None:
        super().__init__(
            HeadProbe(head),
            group=group,
            inputs_and_targets=inputs_and_targets,
            every_n_epochs=every_n_epochs,
            max_samples=max_samples,
            dataloaders=dataloaders,
            seed=seed,
            on_error=on_error,
            summary=summary,
            prog_bar_key=prog_bar_key,
        )
        self._said_head: str | None = None

    @property
    def head_name(self) -> str | None:
        """Dotted name of the head, None before it is known."""
        return self._probe.name

    @abstractmethod
    def _observe(self, observation: Observation) -> None:
        """Take in one batch."""

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "head": self.head_name}

    def _runs_module(self, trainer: Trainer, dataloader_idx: int) -> bool:
        del trainer, dataloader_idx
        return self._probe.runs_layer

    def _measure(self, step: Step) -> None:
        returned = self._probe.returned(step.inputs)
        calls = self._probe.close(partial(self._run_again, step))
        self._say_head(calls[-1], step.module, returned)
        samples = batch_length(step.inputs) or len(calls[0].logits)
        claimed = self._selection.claim(samples, step.dataloader_idx)
        target = step.target
        if claimed < samples:
            calls, target = leading_samples(calls, target, samples, claimed)
        call, target = join_calls(calls, target)
        self._check_positions(call, target)
        self._observe(Observation(call, target, step.dataloader_idx, claimed, step))

    def _check_positions(self, call: HeadCall, target: Tensor | None) -> None:
        """A head in front of a pooling makes logits of positions, where targets are those of samples."""
        positions = tuple(call.logits.shape[1:-1])
        if target is not None and target.ndim == 1 and len(target) == len(call.logits) and positions:
            raise ValueError(
                f"The head {self.head_name!r} makes logits at {' × '.join(map(str, positions))} positions of each "
                "sample, but there is one target for all of them; average the features before the head instead of "
                "its outputs behind it, e.g. `x.mean((2, 3), keepdim=True)`: the mean logits are the same."
            )

    def _say_head(self, call: HeadCall, module: nn.Module, returned: Tensor | None) -> None:
        if self._said_head != self.head_name:
            self._said_head = self.head_name
            assert self.head_name is not None
            layer, (outputs, inputs) = module.get_submodule(self.head_name), call.weight.shape
            kind = "nn.Linear" if isinstance(layer, nn.Linear) else type(layer).__name__
            rank_zero_info(f"{type(self).__name__} measures the head {self.head_name!r}, {kind}({inputs}, {outputs}).")
            if returned is not None and self._expects_logits():
                doubts = doubt(call.logits, returned, is_guessed=self._probe.is_guessed)
                if doubts is not None:
                    rank_zero_warn(f"The head {self.head_name!r} {doubts}")

    def _expects_logits(self) -> bool:
        """Whether the module's forward is expected to return what the head returns."""
        return True
