"""Running a foreign module or attack without a trace in the random numbers, modes and gradients of its surroundings."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from numpy import random as numpy_random
from torch import nn


@contextmanager
def left_as_found(model: object) -> Iterator[None]:
    """Put back a module's modes, and the gradients and flags of its parameters, which are hidden meanwhile.

    Args:
        model: nothing is known of what is no module.
    """
    model = model if isinstance(model, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, flag, gradient in parameters:
            parameter.requires_grad_(flag).grad = gradient


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch, numpy and Python, and put their generators back.

    Args:
        seed: of all of them.
        device: whose generators are put back too.
    """
    # A seed for the CPU goes to all accelerators.
    kind = "cuda" if device.type == "cpu" else device.type
    in_use = device.type != "cpu" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.get_device_module(kind).device_count()) if in_use else ()
    numpy_state, python_state = numpy_random.get_state(), random.getstate()
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            torch.manual_seed(seed)
            numpy_random.seed(seed)
            random.seed(seed)
            yield
        finally:
            numpy_random.set_state(numpy_state)
            random.setstate(python_state)
