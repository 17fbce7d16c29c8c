"""Going on where memory does not suffice: fewer samples through the module at a time."""

import gc
import traceback
from collections.abc import Callable
from functools import partial
from re import search
from typing import TypeVar
from warnings import warn

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ResultT = TypeVar("ResultT")

# What torch raises as a plain RuntimeError: by its CPU allocator, by other accelerators, and by CUDA's libraries.
_TEXTS = r"DefaultCPUAllocator|(CUDA|HIP|MPS|XPU).* out of memory|_STATUS_ALLOC_FAILED|std::bad_alloc"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory did not suffice, also where another error says so in its own words.

    Args:
        error: what was raised.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and search(_TEXTS, str(error)):
            return True
        error = error.__cause__
    return False


def free_memory_of(error: BaseException) -> None:
    """Let go of what failed calls still hold, and hand cached memory back to the device.

    Args:
        error: that ended the calls.
    """
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that it came from, each of which has a traceback of its own."""
    chain: list[BaseException] = []
    found: list[BaseException | None] = [error]
    while found:
        each = found.pop()
        if each is not None and not any(each is other for other in chain):
            chain.append(each)
            found += [each.__cause__, each.__context__]
    return chain


class Memory:
    """How many samples go through a module at a time; less after memory has not sufficed.

    Args:
        owner: name in the warning.

    Attributes:
        rows: most samples at a time; None for all.
    """

    def __init__(self, owner: str) -> None:
        self.rows: int | None = None
        self._owner = owner
        self._said = False

    def reset(self) -> None:
        """Try all samples at once again."""
        self.rows, self._said = None, False

    def begin(self) -> None:
        """Start another measurement, and try twice as many samples at a time as have fitted last.

        What was short may be there again, and a shortage in a small batch says little of larger ones.
        """
        if self.rows is not None:
            self.rows *= 2

    def in_parts(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The same function of a batch, computed in parts where memory asks for it.

        Gradients then go through one part at a time, whose forward is computed once more for them.

        Args:
            fn: maps a batch to one row per sample, each by itself.
        """

        def call(inputs: Tensor) -> Tensor:
            if self.rows is None or len(inputs) <= self.rows:
                return fn(inputs)
            run = partial(checkpoint, fn, use_reentrant=False) if torch.is_grad_enabled() else fn
            return torch.cat([run(part) for part in torch.split(inputs, self.rows)])

        return call

    def suffice(self, work: Callable[[], ResultT], samples: int) -> ResultT:
        """Run ``work``, and where memory does not suffice, again with half as many samples at a time, down to one.

        Args:
            work: changes nothing where it fails.
            samples: of the batch it runs on.
        """
        rows = self.rows
        while True:
            try:
                result = work()
            except Exception as error:
                if not is_out_of_memory(error) or not self._halve(samples):
                    raise
                free_memory_of(error)
            else:
                if self.rows != rows:
                    self._say()
                return result

    def _halve(self, samples: int) -> bool:
        rows = samples if self.rows is None else min(self.rows, samples)
        # Where one sample does not fit, batches are not what fills the memory; later they may fit again.
        self.rows = (rows + 1) // 2 if rows > 1 else None
        return self.rows is not None

    def _say(self) -> None:
        if not self._said:
            self._said = True
            warn(
                f"{self._owner} ran out of memory, and now runs the module on {self.rows} samples at a time: "
                "the values are the same up to rounding, but take longer. Smaller validation batches avoid it.",
                stacklevel=3,
            )
