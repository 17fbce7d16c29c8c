"""Look at a module's own validation forward without changing it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class HeadCall(NamedTuple):
    """One call of the head; ``features`` and ``logits`` have the same leading dimensions."""

    features: Tensor
    logits: Tensor
    weight: Tensor
    bias: Tensor | None


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Leave ``inference_mode`` (metric states made in it could not be updated outside) and record no gradients."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


class HeadProbe:
    """Records the calls of a module's head while it is open.

    Args:
        head: the head, its dotted name, or None for the last ``nn.Linear`` called while the probe is open for the
            first time.
    """

    def __init__(self, head: nn.Module | str | None) -> None:
        self.name: str | None = None
        self._head = head
        self._handles: dict[str, RemovableHandle] = {}
        self._open = False
        self._calls: list[tuple[str, HeadCall]] = []
        self._module_id: int | None = None
        self._last: str | None = None
        self._inputs: list[tuple[str, ReferenceType[Tensor]]] = []
        self._rivals: set[str] = set()

    def attach(self, module: nn.Module) -> None:
        """Hook the head, or every candidate while it is not known; does nothing where hooks are already.

        Raises:
            ValueError: if the head cannot be found in ``module`` or is not linear.
        """
        if self._handles:
            return
        candidates = self._candidates(module)
        if self._module_id != id(module) or self.name not in candidates:
            self._module_id = id(module)
            self.name = next(iter(candidates)) if len(candidates) == 1 else None
        if self.name is not None:
            candidates = {self.name: candidates[self.name]}
        for name, candidate in candidates.items():
            self._handles[name] = candidate.register_forward_hook(self._hook(name), with_kwargs=True)

    def detach(self) -> None:
        """Remove every hook and drop what was recorded."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self.stop()

    def open(self) -> None:
        """Start to record."""
        self.stop()
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether calls are being recorded."""
        return self._open

    def close(self) -> list[HeadCall]:
        """Stop recording and return the calls since ``open``.

        Raises:
            RuntimeError: if the head was not called.
            ValueError: if it is not known and several layers could be the head.
        """
        if self.name is None and self._last is not None:
            self._settle(self._last)
        calls = [call for name, call in self._calls if name == self.name]
        self.stop()
        if not calls:
            head = "The head" if self.name is None else f"The head {self.name!r}"
            raise RuntimeError(
                f"{head} was not called in this step; pass `head=` the layer that makes the logits. "
                "(A module compiled and called before the callback saw it does not run the callback's hook.)"
            )
        return calls

    def stop(self) -> None:
        """Stop recording and drop what was recorded."""
        self._open = False
        self._calls = []
        self._last = None
        self._inputs = []
        self._rivals = set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what runs inside."""
        was_open, self._open = self._open, False
        try:
            yield
        finally:
            self._open = was_open

    def _candidates(self, module: nn.Module) -> dict[str, nn.Linear]:
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        if self._head is None:
            if not layers:
                raise ValueError(
                    f"`head` cannot be found: {type(module).__name__} has no nn.Linear. "
                    "Flatness is that of a linear head; pass `head=` one."
                )
            return layers
        name, layer = self._named(module, layers)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"`head` must be nn.Linear, got {type(layer).__name__} ({name!r}); {_candidate_text(layers)}"
            )
        return {name: layer}

    def _named(self, module: nn.Module, layers: Mapping[str, nn.Linear]) -> tuple[str, nn.Module]:
        if isinstance(self._head, nn.Module):
            for name, layer in module.named_modules():
                if layer is self._head:
                    return name, layer
            raise ValueError(f"`head` is not a part of {type(module).__name__}; {_candidate_text(layers)}")
        assert self._head is not None
        try:
            return self._head, module.get_submodule(self._head)
        except AttributeError:
            raise ValueError(
                f"`head` {self._head!r} is not a part of {type(module).__name__}; {_candidate_text(layers)}"
            ) from None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._open:
                return
            features = args[0] if args else kwargs["input"]
            if self._last != name:
                self._rivals = set()
            # A compiled graph holds no weak references: there the layer called last is taken without this check.
            if self.name is None and not torch.compiler.is_compiling():
                self._rivals |= {other for other, seen in self._inputs if seen() is features and other != name}
                self._inputs.append((name, ref(features)))
            self._last = name
            bias = layer.bias
            bias = None if bias is None else bias.detach()
            call = HeadCall(features.detach(), output.detach(), layer.weight.detach(), bias)
            self._calls.append((name, call))

        return record

    def _settle(self, last: str) -> None:
        """Take the layer called last for the head, unless another one was given the same features."""
        if self._rivals:
            names = ", ".join(repr(name) for name in self._handles if name in {last, *self._rivals})
            self.stop()
            raise ValueError(f"`head` is ambiguous: {names} were given the same features; pass `head=` one of them.")
        self.name = last
        for name in [name for name in self._handles if name != last]:
            self._handles.pop(name).remove()


def _candidate_text(layers: Mapping[str, nn.Linear]) -> str:
    if not layers:
        return "the module has no nn.Linear."
    return f"pass `head=` one of {', '.join(map(repr, layers))}."
