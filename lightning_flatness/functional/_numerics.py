"""Precision and memory: what every formula of this package is evaluated with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TILE_ELEMENTS = 2**19
"""Largest number of elements of a temporary: 2 MiB in float32."""

_HAS_FP32_PRECISION = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # since torch 2.9


def wide(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, or in float32 on MPS, which has no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 if it is bf16 or fp16, else unchanged."""
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()


def numbers(values: Tensor | Sequence[float] | float, like: Tensor) -> Tensor:
    """Return ``values`` as :func:`wide` numbers on the device of ``like``."""
    return torch.as_tensor(values, dtype=wide(like.new_empty(0)).dtype, device=like.device)


def sq_norm(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """Squared Euclidean norm of each row; no temporary as large as ``rows``."""
    return wide(torch.linalg.vector_norm(at_least_float32(rows), dim=1)).square()


def chunks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(length)``; at least one."""
    size = max(1, size)
    for start in range(0, max(length, 1), size):
        yield slice(start, min(start + size, length))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast, TF32 and bf16 matrix products off, and put the settings back."""
    with torch.autocast(device.type, enabled=False), _exact_matmul():
        yield


@contextmanager
def _exact_matmul() -> Iterator[None]:
    level = _legacy_precision()
    legacy = None if level == "highest" else level
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul] if _HAS_FP32_PRECISION else []  # type: ignore[attr-defined]
    found = [(backend, backend.fp32_precision) for backend in backends]
    if legacy is not None:
        torch.set_float32_matmul_precision("highest")
    else:
        _set_precisions([(backend, "ieee") for backend in backends])
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        # In the older way too: the level is also that of `allow_tf32`, which leaves mkldnn alone.
        _set_precisions(found)


def _set_precisions(precisions: Sequence[tuple[Any, str]]) -> None:
    for backend, precision in precisions:
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision


def _legacy_precision() -> str | None:
    """Precision set the older way; None where it was set the newer way, which makes the older getter raise."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def recording(point: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield ``point`` and ``target`` such that gradients of ``point`` can be taken, and whether to keep their graph.

    Outside a graph both are copied, since neither ``no_grad`` nor inference tensors can record anything.
    """
    if torch.is_grad_enabled() and point.requires_grad:
        yield point, target, True
    else:
        with torch.inference_mode(mode=False), torch.enable_grad():
            yield point.detach().clone().requires_grad_(), target.clone(), False


class LogScaled(NamedTuple):
    """The number ``value * exp(log_scale)``, kept apart so that its logarithm cannot underflow."""

    value: Float[Tensor, " batch"]
    log_scale: Float[Tensor, " batch"]

    def linear(self) -> Float[Tensor, " batch"]:
        """Return the number itself."""
        return self.value * self.log_scale.exp()

    def log(self) -> Float[Tensor, " batch"]:
        """Return its natural logarithm: -inf at 0, NaN below."""
        return self.value.log() + self.log_scale

    def times(self, factor: Tensor) -> "LogScaled":
        """Return the product with ``factor``."""
        return LogScaled(self.value * factor, self.log_scale)

    @staticmethod
    def of(value: Tensor) -> "LogScaled":
        """Wrap a plain number."""
        return LogScaled(value, torch.zeros_like(value))

    @staticmethod
    def cat(parts: "Sequence[LogScaled]") -> "LogScaled":
        """Concatenate consecutive batches."""
        return LogScaled(torch.cat([part.value for part in parts]), torch.cat([part.log_scale for part in parts]))
