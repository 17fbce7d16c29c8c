"""A tensor that carries an upper bound on its Lipschitz constant through a module's own forward.

Every torch function that is called with one looks up its rule; one without a rule raises. Code that reaches the numbers
by another way (a compiled extension, say) finds no storage and raises as well, so that nothing is left out silently.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from math import hypot, prod, sqrt
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import resolve_name
from typing_extensions import override


class NoRuleError(Exception):
    """An operation has no Lipschitz constant that is known; the text says which and why."""


class Bound:
    """Upper bound on the Lipschitz constant of a tensor as a function of the module's input, l2 to l2.

    Args:
        constant: the bound.
    """

    def __init__(self, constant: float) -> None:
        self._constant = constant

    @property
    def constant(self) -> float:
        """The bound itself."""
        return self._constant


class LinearBound(Bound):
    """Bound of a linear layer's output, evaluated when needed, so that a scale of its channels can be absorbed.

    Args:
        source: bound of the layer's input.
        weight: weight, output channels first, in float64 on the CPU.
        norm: upper bound on the operator norm of the layer with a given weight.
    """

    def __init__(
        self,
        source: float,
        weight: Float[Tensor, "out_channels *rest"],
        norm: Callable[[Tensor], float],
    ) -> None:
        self._source = source
        self._weight = weight
        self._norm = norm

    @property
    @override
    def constant(self) -> float:
        return self._evaluated

    @cached_property
    def _evaluated(self) -> float:
        return self._source * self._norm(self._weight)

    def rescaled(self, scale: Float[Tensor, " out_channels"]) -> "LinearBound":
        """Bound of the output times one number per channel."""
        scale = scale.view(-1, *[1] * (self._weight.ndim - 1))
        return LinearBound(self._source, self._weight * scale, self._norm)


Rule = Callable[..., Bound]
"""Maps the arguments of a torch function, one of them a :class:`BoundedTensor` at least, to the bound of its result."""


class BoundedTensor(Tensor):
    """A tensor of the module's forward with the bound of its Lipschitz constant. It has no storage of its own.

    Args:
        value: the numbers.
        bound: bound of its Lipschitz constant.
        rules: the rule of each torch function that has one; None where the result holds no number of the tensor.
        alive: all such tensors of one forward.
    """

    value: Tensor
    bound: Bound

    def __new__(cls, value: Tensor, *_: Any) -> "BoundedTensor":
        """Make the shell of ``value``."""
        make_shell = torch.Tensor._make_wrapper_subclass  # noqa: SLF001 - its only name, documented for subclasses
        return make_shell(cls, value.shape, dtype=value.dtype, device=value.device)

    def __init__(
        self,
        value: Tensor,
        bound: Bound,
        rules: Mapping[Any, Rule | None],
        alive: "WeakSet[BoundedTensor]",
    ) -> None:
        super().__init__()
        self.value = value
        self.bound = bound
        self.rules = rules
        self.alive = alive
        alive.add(self)

    @classmethod
    @override
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        some = _bounded((args, kwargs))[0]
        if func not in some.rules:
            raise NoRuleError(f"no Lipschitz constant is known for {_name(func)}")
        if kwargs.get("out") is not None:
            raise NoRuleError(f"{_name(func)} writes into a given tensor")
        rule = some.rules[func]
        bound = None if rule is None else rule(*args, **kwargs)
        plain_args, plain_kwargs = plain((args, kwargs))
        result = func(*plain_args, **plain_kwargs)
        return result if bound is None else _wrap(some, result, bound, (args, kwargs))

    # mypy: torch declares a plain function here.
    @classmethod
    @override
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NoRuleError(f"{func} was called from outside Python")


def _wrap(like: BoundedTensor, result: Any, bound: Bound, arguments: Any) -> Any:
    """Give ``result`` its bound; an operation in place changes that of what it has changed."""
    if isinstance(result, tuple | list):
        return type(result)(BoundedTensor(part, bound, like.rules, like.alive) for part in result)
    if not result.is_floating_point():
        raise NoRuleError(f"a result is {result.dtype}")
    for given in _tensors(arguments):
        if given is result:
            raise NoRuleError("a tensor that did not depend on the input is changed in place")
        if isinstance(given, BoundedTensor) and given.value is result:
            _change(given, bound)
            return given
    return BoundedTensor(result, bound, like.rules, like.alive)


def _change(tensor: BoundedTensor, bound: Bound) -> None:
    """Set a new bound, and those of other views of the same numbers, unless the numbers have only come closer."""
    if bound.constant > tensor.bound.constant:
        storage = tensor.value.untyped_storage().data_ptr()
        for other in tensor.alive:
            if other is not tensor and other.value.untyped_storage().data_ptr() == storage:
                other.bound = Bound(hypot(other.bound.constant, _repeats(other.value) * bound.constant))
    tensor.bound = bound


def _repeats(view: Tensor) -> float:
    """Root of how often an expanded view shows each number of its storage."""
    return sqrt(prod(size for size, step in zip(view.shape, view.stride(), strict=True) if step == 0))


def _tensors(arguments: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    return [tensor for part in arguments for tensor in _tensors(part)] if isinstance(arguments, tuple | list) else []


def _bounded(arguments: Any) -> list[BoundedTensor]:
    return [tensor for tensor in _tensors(arguments) if isinstance(tensor, BoundedTensor)]


def depends_on_input(*arguments: Any) -> bool:
    """Whether any tensor in the arguments depends on the module's input."""
    return bool(_bounded(arguments))


def plain(arguments: Any) -> Any:
    """The same with the numbers in place of the bounded tensors."""
    if isinstance(arguments, BoundedTensor):
        return arguments.value
    if isinstance(arguments, dict):
        return {name: plain(part) for name, part in arguments.items()}
    if isinstance(arguments, tuple | list) and _bounded(arguments):
        return tuple(map(plain, arguments)) if isinstance(arguments, tuple) else list(map(plain, arguments))
    return arguments


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__qualname__", None) or repr(func)
