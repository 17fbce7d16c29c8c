"""A trainer's module as a function of its inputs: its own forward observed, and run again without a trace."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from lightning_flatness._isolation import left_as_found, own_random_numbers
from lightning_flatness.functional._lipschitz_tensor import plain

ModuleLogits = Callable[[LightningModule, Tensor], Tensor]
"""Maps a module and inputs to logits, shape ``(batch, classes)``."""
MetricT = TypeVar("MetricT", bound=Metric)


class OutputProbe:
    """Records inputs and outputs of a module's own forward while it is open."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._open = False
        self._calls: list[tuple[Any, Any]] = []

    @property
    def is_open(self) -> bool:
        """Whether calls are being recorded."""
        return self._open

    def attach(self, module: nn.Module) -> None:
        """Hook the module; does nothing where a hook is already."""
        if self._handle is None:
            self._handle = module.register_forward_hook(self._record)

    def detach(self) -> None:
        """Remove the hook and drop what was recorded."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.stop()

    def open(self) -> None:
        """Start to record."""
        self.stop()
        self._open = True

    def stop(self) -> None:
        """Stop recording and drop what was recorded."""
        self._open = False
        self._calls = []

    def close(self, inputs: Any) -> Tensor | None:
        """Stop recording and return what forward has made of ``inputs``; None where it was not called with them."""
        outputs = self.outputs(inputs)
        self.stop()
        return outputs[0] if outputs else None

    def outputs(self, inputs: Any) -> list[Tensor]:
        """What forward has made of ``inputs``, once for each call with them."""
        return [output for given, output in self._calls if given is inputs and isinstance(output, Tensor)]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what runs inside."""
        was_open, self._open = self._open, False
        try:
            yield
        finally:
            self._open = was_open

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module
        if self._open and len(args) == 1:
            self._calls.append((args[0], output))


def logits_function(
    trainer: Trainer, module: LightningModule, logits: ModuleLogits | None
) -> Callable[[Tensor], Tensor]:
    """The module as its validation step runs it: in the trainer's precision, and never compiled anew.

    Args:
        trainer: gives the precision.
        module: under evaluation.
        logits: maps the module and inputs to logits; None for the module's ``forward``.
    """
    forward = _forward_again(trainer, module, logits)
    return lambda inputs: _checked_logits(forward(inputs), module)


def features_function(
    trainer: Trainer, module: LightningModule, head: str, logits: ModuleLogits | None
) -> Callable[[Tensor], Tensor]:
    """What enters the head when the module runs as its validation step runs it.

    Args:
        trainer: gives the precision.
        module: under evaluation.
        head: dotted name of the head.
        logits: maps the module and inputs to logits; None for the module's ``forward``.
    """
    forward, layer = _forward_again(trainer, module, logits), module.get_submodule(head)

    def call(inputs: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def keep(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            features = args[0] if args else kwargs["input"]
            seen.append(features)
            # What comes after needs no graph, and may be anything.
            return (plain(features).detach(),), {}

        with layer.register_forward_pre_hook(keep, with_kwargs=True):
            forward(inputs)
        if len(seen) != 1:
            raise ValueError(
                f"The head {head!r} must be called once when the module runs on a batch, got {len(seen)} calls; "
                "pass `logits_fn=lambda module, x: ...`, which runs it so."
            )
        # What enters a convolution with one position has more dimensions.
        return seen[0] if seen[0].ndim == 2 else seen[0].flatten(1)

    return call


def _forward_again(trainer: Trainer, module: LightningModule, logits: ModuleLogits | None) -> Callable[[Tensor], Any]:
    precision = trainer.precision_plugin
    if logits is None and type(module).forward is LightningModule.forward:
        raise ValueError(
            f"{type(module).__name__} has no `forward`; pass `logits_fn=lambda module, x: ...`, "
            "which returns the logits."
        )
    forward = logits or LightningModule.__call__

    def call(inputs: Tensor) -> Any:
        with torch.compiler.set_stance("force_eager"), precision.forward_context():
            return forward(module, precision.convert_input(inputs))

    return call


def _checked_logits(output: Any, module: nn.Module) -> Any:
    if isinstance(output, Tensor):
        return output
    part = repr(next(iter(output))) if isinstance(output, Mapping) and output else "0"
    raise ValueError(
        f"{type(module).__name__} returned {type(output).__name__} instead of logits; "
        f"pass `logits_fn=lambda module, x: module(x)[{part}]`, or `head=` the layer that makes them."
    )


def head_logits(head: nn.Module | str) -> ModuleLogits:
    """What a layer makes of its inputs when the module's ``forward`` runs.

    Args:
        head: the layer, or its dotted name.
    """
    return partial(_outputs_of, head)  # no inner function: spawned processes are sent their callbacks


def _outputs_of(head: nn.Module | str, module: LightningModule, inputs: Tensor) -> Tensor:
    layer = _submodule(module, head) if isinstance(head, str) else head
    outputs: list[Tensor] = []
    with layer.register_forward_hook(lambda _layer, _args, output: outputs.append(output)):
        module(inputs)
    if not outputs:
        raise ValueError(f"`head` {head!r} was not called by the module's forward; pass `logits_fn=`.")
    has_one_position = outputs[-1].ndim > 2 and outputs[-1].shape[2:].numel() == 1  # of a convolution
    return outputs[-1].flatten(1) if has_one_position else outputs[-1]


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = ", ".join(repr(child) for child, _ in module.named_children())
        raise ValueError(
            f"`head` {name!r} is not a part of {type(module).__name__}; pass one of its layers, in {names}."
        ) from None


def on_device(metric: MetricT, device: torch.device) -> MetricT:
    """Move a metric to a device; MPS has no float64."""
    if device.type == "mps":
        metric.set_dtype(torch.float32)
    return metric.to(device)


@contextmanager
def undisturbed(module: LightningModule, seed: int) -> Iterator[None]:
    """Put back random states, modes, gradients and buffers, whatever happens inside; what the module logs is dropped.

    Args:
        module: run inside.
        seed: of the random numbers that the module itself may draw.
    """
    with own_random_numbers(seed, module.device), left_as_found(module), _copied_buffers(module), _silent(module):
        yield


@contextmanager
def _copied_buffers(module: nn.Module) -> Iterator[None]:
    """Hide buffers behind copies: a forward may write to them, resize or replace them, in whatever mode it is."""
    buffers = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}  # buffers may be shared
    try:
        for part, name, buffer in buffers:
            setattr(part, name, copies[id(buffer)])
        yield
    finally:
        known = {(part, name) for part, name, _ in buffers}
        for part in module.modules():
            for name in [name for name, _ in part.named_buffers(recurse=False) if (part, name) not in known]:
                delattr(part, name)
        for part, name, buffer in buffers:
            setattr(part, name, buffer)


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Let ``self.log`` in a forward do nothing: only the forwards of the module's own steps are to be logged."""
    attributes = vars(module)
    own = {name: attributes[name] for name in ("log",) if name in attributes}
    attributes["log"] = _log_nothing
    try:
        yield
    finally:
        del attributes["log"]
        attributes |= own


def _log_nothing(*_: Any, **__: Any) -> None:
    """Stand in for ``LightningModule.log``."""
