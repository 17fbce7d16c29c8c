"""Look at a module's own validation forward without changing it."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_flatness.callbacks._module import OutputProbe
from lightning_flatness.callbacks._sharding import is_sharded
from lightning_flatness.functional._affine import HeadCall, RawCall, head_call, recorded_call

_SHOWN_LAYERS = 5
"""Layers that a message names: heads are among the last."""

Aside = Callable[[], AbstractContextManager[None]]
"""Makes a context in which layers can be run without a trace."""


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Leave ``inference_mode`` (metric states made in it could not be updated outside) and record no gradients."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


class HeadProbe:
    """Records the calls of a module's head while it is open.

    Args:
        head: the head, its dotted name, or None for the last ``nn.Linear`` called while the probe is open for the
            first time, or the module around it where that adds something to its outputs, as LoRA does.
    """

    def __init__(self, head: nn.Module | str | None) -> None:
        self.name: str | None = None
        self._head = head
        self._outputs = OutputProbe()
        self._handles: dict[str, RemovableHandle] = {}
        self._open = False
        self._layers: dict[str, nn.Module] = {}
        self._calls: list[tuple[str, RawCall | None]] = []
        self._module_id: int | None = None
        self._last: str | None = None
        self._inputs: list[tuple[str, ReferenceType[Tensor]]] = []
        self._rivals: set[str] = set()
        self._around: set[str] = set()
        self._is_sharded = False

    def attach(self, module: nn.Module) -> None:
        """Hook the head, or every candidate and what is around it while it is not known; does nothing where hooks are.

        Raises:
            ValueError: if the head cannot be found in ``module``.
        """
        if self._handles:
            return
        candidates = self._candidates(module)
        if self._module_id != id(module) or self.name not in candidates:
            self._module_id = id(module)
            self.name = next(iter(candidates)) if len(candidates) == 1 else None
        if self.name is not None:
            candidates = {self.name: candidates[self.name]}
        self._layers = candidates
        self._is_sharded = is_sharded(module)
        for name, candidate in candidates.items():
            # First, where FSDP's own hook would take the weight away.
            self._handles[name] = candidate.register_forward_hook(
                self._hook(name), with_kwargs=True, prepend=self._is_sharded
            )
        self._outputs.attach(module)

    def detach(self) -> None:
        """Remove every hook and drop what was recorded."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._outputs.detach()
        self._layers = {}
        self.stop()

    def open(self) -> None:
        """Start to record."""
        self.stop()
        self._open = True
        self._outputs.open()

    @property
    def is_open(self) -> bool:
        """Whether calls are being recorded."""
        return self._open

    @property
    def is_guessed(self) -> bool:
        """Whether nobody has said which layer is the head."""
        return self._head is None

    def returned(self, inputs: Any) -> Tensor | None:
        """What the module's forward has made of ``inputs``; None unless it was called with them once."""
        outputs = self._outputs.outputs(inputs)
        return outputs[0] if len(outputs) == 1 else None

    @property
    def runs_layer(self) -> bool:
        """Whether ``close`` runs a layer, whose weight could not be recorded."""
        if self.name is None:
            return bool(self._around)
        return bool(self._calls) and all(call is None or call.weight is None for _, call in self._calls)

    def close(self, aside: Aside) -> list[HeadCall]:
        """Stop recording and return the calls since ``open``.

        Args:
            aside: makes a context in which layers can be run without a trace.

        Raises:
            RuntimeError: if the head was not called.
            ValueError: if it is not known and several layers could be the head, or it is not affine.
        """
        calls, last, rivals, around = self._calls, self._last, self._rivals, self._around
        self.stop()
        with plain_tensors():
            if self.name is None and last is not None:
                latest = {name: call for name, call in calls if call is not None}
                chosen = self._widened(last, latest, around, aside)
                self._settle(chosen, {last, *rivals} if rivals and chosen == last else set())
            own = [call for name, call in calls if name == self.name]
            if self.name is not None and own:
                return self._heads(self.name, own, aside)
        head = "The head" if self.name is None else f"The head {self.name!r}"
        raise RuntimeError(
            f"{head} was not called in this step; pass `head=` the layer that makes the logits. "
            "(A module compiled and called before the callback saw it does not run the callback's hook.)"
        )

    def stop(self) -> None:
        """Stop recording and drop what was recorded."""
        self._open = False
        self._outputs.stop()
        self._calls = []
        self._last = None
        self._inputs = []
        self._rivals = set()
        self._around = set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing of what runs inside."""
        was_open, self._open = self._open, False
        try:
            with self._outputs.paused():
                yield
        finally:
            self._open = was_open

    def _candidates(self, module: nn.Module) -> dict[str, nn.Module]:
        linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
        if self._head is not None:
            name, layer = self._named(module, self._head, linear)
            return {name: layer}
        layers = {
            name: layer
            for name, layer in module.named_modules()
            if name and (name in linear or any(inner.startswith(f"{name}.") for inner in linear))
        }
        if not layers:
            raise ValueError(
                f"`head` cannot be found: {type(module).__name__} has no nn.Linear. Flatness is that of a head "
                "W x + b; pass `head=` the layer that is one, e.g. a convolution with 1×1 kernels."
            )
        return layers

    def _named(
        self, module: nn.Module, head: nn.Module | str, linear: Mapping[str, nn.Linear]
    ) -> tuple[str, nn.Module]:
        if isinstance(head, nn.Module):
            for name, layer in module.named_modules():
                if layer is head:
                    return name, layer
            raise ValueError(f"`head` is not a part of {type(module).__name__}; {_candidate_text(linear)}")
        try:
            return head, module.get_submodule(head)
        except AttributeError:
            raise ValueError(
                f"`head` {head!r} is not a part of {type(module).__name__}; {_candidate_text(linear)}"
            ) from None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._open or self.name not in {None, name}:
                return
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            is_map = len(given) == 1 and isinstance(output, Tensor)
            call = recorded_call(layer, given[0], output) if is_map else None
            if self.name is None:
                if isinstance(layer, nn.Linear):
                    self._look_for_rivals(name, given[0])
                elif call is None or not self._may_widen(name, layer, call):
                    return
            if self._is_sharded and call is not None and call.weight is not None:
                call = self._copied(name, call)
            self._calls.append((name, call))

        return record

    def _copied(self, name: str, call: RawCall) -> RawCall:
        """Copy a weight, whose storage FSDP frees behind the forward; only the layer called last may be the head."""
        self._calls = [
            (other, earlier if earlier is None or other == name else earlier._replace(weight=None, bias=None))
            for other, earlier in self._calls
        ]
        assert call.weight is not None
        return call._replace(weight=call.weight.clone(), bias=None if call.bias is None else call.bias.clone())

    def _look_for_rivals(self, name: str, features: Tensor) -> None:
        """Take note of a linear layer that is called, and of those given the same features."""
        if self._last != name:
            self._rivals = set()
        # A compiled graph holds no weak references: there the layer called last is taken without this check.
        if not torch.compiler.is_compiling():
            self._rivals |= {other for other, seen in self._inputs if seen() is features and other != name}
            self._inputs.append((name, ref(features)))
        self._last = name
        self._around = set()

    def _may_widen(self, name: str, layer: nn.Module, call: RawCall) -> bool:
        """Whether a module is around the linear layer called last, and sees what a linear layer in it can."""
        dims = {part.in_features for part in layer.modules() if isinstance(part, nn.Linear)}
        if self._last is None or not self._last.startswith(f"{name}.") or call.inputs.shape[-1] not in dims:
            return False
        self._around.add(name)
        return True

    def _widened(
        self,
        last: str,
        calls: Mapping[str, RawCall],
        around: Set[str],
        aside: Aside,
    ) -> str:
        """The layer called last, or the module around it that adds something to its outputs, such as LoRA."""
        call = calls[last]
        try:
            with aside():
                plain = head_call(self._layers[last], call, last).logits if around else None
        except ValueError:
            plain = None  # changed in place
        for name in sorted(around, key=len):
            wider = calls[name]
            if wider.outputs.shape != call.outputs.shape:
                break
            if plain is not None and torch.equal(wider.outputs, plain):
                continue
            try:
                with aside():
                    head_call(self._layers[name], wider, name)
            except Exception:  # foreign code, run on what it was not made for
                break
            return name
        return last

    def _settle(self, chosen: str, rivals: Set[str]) -> None:
        """Take a layer for the head, unless another one was given the same features.

        The other hooks stay, and do nothing: without them inductor would compile the training step anew, for shapes
        that it has learnt to vary, and round otherwise.
        """
        if rivals:
            names = ", ".join(repr(name) for name in self._handles if name in rivals)
            raise ValueError(f"`head` is ambiguous: {names} were given the same features; pass `head=` one of them.")
        self.name = chosen

    def _heads(self, name: str, calls: Sequence[RawCall | None], aside: Aside) -> list[HeadCall]:
        layer = self._layers[name]
        heads: list[HeadCall] = []
        known = next((call for call in reversed(calls) if call is not None and call.weight is not None), None)
        for call in calls:
            if call is None:
                raise ValueError(
                    f"`head` must map one tensor to another, but {name!r} is a {type(layer).__name__} that does not; "
                    "pass `head=` the linear layer that makes the logits."
                )
            source = known or (heads[0] if heads else None)
            if call.weight is not None:
                heads.append(head_call(layer, call, name))
            elif source is not None:
                heads.append(head_call(layer, call._replace(weight=source.weight, bias=source.bias), name))
            else:
                with aside():
                    heads.append(head_call(layer, call, name))
        return heads


def _candidate_text(layers: Mapping[str, nn.Linear]) -> str:
    if not layers:
        return "the module has no nn.Linear."
    shown = [repr(name) for name in layers][-_SHOWN_LAYERS:]
    return f"pass `head=` one of {'…, ' if len(shown) < len(layers) else ''}{', '.join(shown)}."
