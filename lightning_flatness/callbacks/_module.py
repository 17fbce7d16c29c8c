"""A trainer's module as a function of its inputs: its own forward observed, and run again without a trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ModuleLogits = Callable[[LightningModule, Tensor], Tensor]
"""Maps a module and inputs to logits, shape ``(batch, classes)``."""


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

    def close(self, inputs: Tensor) -> Tensor | None:
        """Stop recording and return what forward has made of ``inputs``; None where it was not called with them."""
        outputs = [output for given, output in self._calls if given is inputs and isinstance(output, Tensor)]
        self.stop()
        return outputs[0] if outputs else None

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module
        if self._open and len(args) == 1:
            self._calls.append((args[0], output))


def logits_function(trainer: Trainer, module: LightningModule, logits: ModuleLogits | None) -> Callable[[Tensor], Tensor]:
    """The module as its validation step runs it: in the trainer's precision, and never compiled anew.

    Args:
        trainer: gives the precision.
        module: under evaluation.
        logits: maps the module and inputs to logits; None for the module's ``forward``.
    """
    precision = trainer.precision_plugin

    def call(inputs: Tensor) -> Tensor:
        with torch.compiler.set_stance("force_eager"), precision.forward_context():
            converted = precision.convert_input(inputs)
            return module(converted) if logits is None else logits(module, converted)

    return call


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back random states, modes, gradients and running statistics, whatever happens inside.

    Args:
        module: run inside.
        device: of the module.
    """
    with ExitStack() as stack:
        stack.enter_context(_same_random_numbers(device))
        stack.enter_context(_same_modes(module))
        stack.enter_context(_same_gradients(module))
        stack.enter_context(_same_statistics(module))
        yield


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    state = None if accelerator is None else accelerator.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerator is not None:
            accelerator.set_rng_state(state)


@contextmanager
def _same_modes(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _same_gradients(module: nn.Module) -> Iterator[None]:
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _, _ in gradients:
        parameter.grad = None  # what is added up inside must not land in the gradients of training
    try:
        yield
    finally:
        for parameter, gradient, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _same_statistics(module: nn.Module) -> Iterator[None]:
    """Modules that stay in training mode update their buffers with every forward."""
    buffers = [
        (buffer, buffer.clone()) for part in module.modules() if part.training for buffer in part.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
