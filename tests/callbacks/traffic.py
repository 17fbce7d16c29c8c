"""What one process sends to the others."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

_SENT_SECOND = {"allgather_", "_allgather_base_", "_reduce_scatter_base_"}
"""Operations whose first argument is the result."""


class Traffic(TorchDispatchMode):
    """Counts collectives, and the bytes that this process gives to them, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # what it is made of comes here later
        if func.namespace in {"c10d", "_c10d_functional"}:
            name = func.name().split("::")[1].split(".")[0]
            self.calls[name] += 1
            if name != "barrier":
                self.bytes += sum(one.nbytes for one in _tensors(args[name in _SENT_SECOND]))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
