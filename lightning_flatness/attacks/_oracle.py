"""Calls of the attacked model: checked, counted, and free of side effects on it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_flatness.attacks._slope import logit_gradient
from lightning_flatness.attacks.losses import AttackLoss, cross_entropy
from lightning_flatness.functional._numerics import at_least_float32

LogitsFunction = Callable[[Tensor], Tensor]
"""Maps inputs to logits, shape ``(batch, classes)``; a module in evaluation mode, for example."""

_FP16_EXPONENT = 8
"""Gradients enter a float16 model at this power of two, far from its underflow and its overflow."""


class Evaluation(NamedTuple):
    """What one call of the model says about a batch."""

    objective: Float[Tensor, " batch"]  # the attack's loss
    loss: Float[Tensor, " batch"]  # cross-entropy
    fooled: Bool[Tensor, " batch"]
    num_fooled: int | None  # None where nobody asked
    finite: Bool[Tensor, " batch"]  # logits, and the gradient if there is one
    gradient: Float[Tensor, "batch *shape"] | None


class Derivative(NamedTuple):
    """A function of the logits and its derivative, as ordinary code computes them."""

    logits: Float[Tensor, "batch classes"]
    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch *shape"]
    rounding: Float[Tensor, " batch"]  # relative error of the logits

    def is_flat(self) -> Bool[Tensor, " batch"]:
        """Whether the gradient is exactly 0."""
        return self.gradient.flatten(1).abs().amax(1) == 0


class Oracle:
    """The model under attack.

    Args:
        logits_fn: maps inputs to logits.
        autocast_dtype: run the passes under autocast, and check each claimed success without it; None for neither.
    """

    def __init__(self, logits_fn: LogitsFunction, autocast_dtype: torch.dtype | None) -> None:
        self.forwards = self.backwards = 0
        self.logits_fn = logits_fn
        self._autocast_dtype = autocast_dtype

    def logits(self, inputs: Tensor) -> Float[Tensor, "batch classes"]:
        """Logits as ``logits_fn`` gives them, float32 or wider, without a graph."""
        with torch.no_grad():
            return at_least_float32(self._call(inputs))

    def output(self, point: Tensor) -> Float[Tensor, "batch classes"]:
        """Output of one pass, with its graph where gradients are enabled."""
        with self._autocast(point):
            return self._call(point)

    def evaluate(
        self,
        inputs: Float[Tensor, "batch *shape"],
        target: Int[Tensor, " batch"],
        objective: AttackLoss,
        *,
        gradient: bool,
        count_fooled: bool,
    ) -> Evaluation:
        """Call the model once; with ``count_fooled`` no gradient is computed once all samples are fooled.

        Counting waits for the device, and is the only thing that does; under autocast, so does the check.

        A sample's gradient is scaled by a power of two, so that no confidence of the model makes it underflow on its
        way back; its sign and direction stay what they are.
        """
        point = inputs.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            output = self.output(point)
        logits = at_least_float32(output.detach())
        loss = cross_entropy(logits, target)
        value = loss if objective is cross_entropy else _checked_objective(objective(logits, target), len(logits))
        finite = usable(logits)
        fooled = self._confirm(inputs, target, finite & (logits.argmax(1) != target))
        num_fooled = int(fooled.sum()) if count_fooled else None
        if not gradient or num_fooled == len(fooled):
            return Evaluation(value, loss, fooled, num_fooled, finite, None)
        direction, _ = balanced(logit_gradient(objective, logits, target, value), output.dtype)
        slope = self.pull_back(point, output, direction)
        has_slope = (slope.flatten(1).sum(1) + value).abs() < torch.inf
        slope = torch.where(has_slope.view(-1, *[1] * (slope.ndim - 1)), slope, 0)
        return Evaluation(value, loss, fooled, num_fooled, finite & has_slope, slope)

    def differentiate(
        self, inputs: Float[Tensor, "batch *shape"], target: Int[Tensor, " batch"], objective: AttackLoss
    ) -> Derivative:
        """Call the model once and take the gradient as it comes: what underflows is 0."""
        point = inputs.detach().requires_grad_()
        output = self.output(point)
        logits = at_least_float32(output)
        value = objective(logits, target)
        self.backwards += len(point)
        gradient = _input_gradient(value.sum(), point, None)
        return Derivative(logits.detach(), value.detach(), gradient, _rounding(output.detach(), gradient))

    def _call(self, inputs: Tensor) -> Tensor:
        self.forwards += len(inputs)
        output: object = self.logits_fn(inputs)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"`logits_fn` must return a tensor of logits, got {type(output).__name__}; "
                "wrap the model, e.g. `lambda x: model(x)[0]`."
            )
        if output.ndim != 2 or len(output) != len(inputs) or output.shape[1] < 2 or not output.is_floating_point():
            raise ValueError(
                f"`logits_fn` must return floating-point logits of shape ({len(inputs)}, classes), "
                f"got {output.dtype} {tuple(output.shape)}."
            )
        return output

    def _confirm(self, inputs: Tensor, target: Tensor, claimed: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Drop what fooled the model only under autocast."""
        if self._autocast_dtype is None:
            return claimed
        rows = claimed.nonzero().squeeze(1)
        if not len(rows):
            return claimed
        logits = self.logits(inputs.detach()[rows])
        return claimed.index_copy(0, rows, usable(logits) & (logits.argmax(1) != target[rows]))

    def pull_back(
        self, point: Tensor, output: Tensor, slope: Float[Tensor, "batch classes"], *, keep_graph: bool = False
    ) -> Float[Tensor, "batch *shape"]:
        """Gradient in ``point`` of ``output`` weighted by ``slope``.

        Raises:
            ValueError: if there is no graph.
        """
        self.backwards += len(point)
        return _input_gradient(output, point, slope.to(output.dtype), keep_graph=keep_graph)

    def _autocast(self, inputs: Tensor) -> "torch.autocast | nullcontext[None]":
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(inputs.device.type, self._autocast_dtype, cache_enabled=False)


def balanced(
    slope: Float[Tensor, "batch classes"], dtype: torch.dtype
) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]:
    """Slopes that neither underflow nor overflow in ``dtype``, and the powers of two that they were divided by."""
    _, exponent = torch.frexp(slope.abs().amax(1))
    # 120: a larger power of two is itself no float32 number.
    power = (exponent - (_FP16_EXPONENT if dtype == torch.float16 else 0)).clamp(-120, 120)
    return torch.ldexp(slope, -power.unsqueeze(1)), power


def usable(logits: Float[Tensor, "batch classes"]) -> Bool[Tensor, " batch"]:
    """Whether logits order the classes: no NaN, no +inf; -inf masks a class."""
    return logits.amax(1).abs() < torch.inf


def _rounding(output: Float[Tensor, "batch classes"], gradient: Float[Tensor, "batch *shape"]) -> Tensor:
    """Rounding error of the coarsest dtype that the first or the last operation of a model seems to have.

    Autocast and mixed-precision models often return float32: their dtype tells nothing, but their digits do.
    """
    rounding = gradient.new_full((len(output),), torch.finfo(output.dtype).eps)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = _has_digits_of(output, dtype) | _has_digits_of(gradient.flatten(1), dtype)
        rounding = torch.where(narrow, rounding.clamp(min=torch.finfo(dtype).eps), rounding)
    return rounding


def _has_digits_of(values: Float[Tensor, "batch dim"], dtype: torch.dtype) -> Bool[Tensor, " batch"]:
    """Whether rounding to ``dtype`` changes nothing; 0 and what is not finite are no evidence."""
    evidence = (values != 0) & values.isfinite()
    return evidence.any(1) & ((values.to(dtype).to(values.dtype) == values) | ~evidence).all(1)


def _input_gradient(value: Tensor, point: Tensor, slope: Tensor | None, *, keep_graph: bool = False) -> Tensor:
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, point, slope, retain_graph=keep_graph, allow_unused=True)
    if gradient is None:
        raise ValueError("`logits_fn` must be differentiable in its inputs, got logits without a graph.")
    return at_least_float32(gradient)


def _checked_objective(value: Tensor, batch: int) -> Tensor:
    if value.shape != (batch,):
        raise ValueError(f"`loss` must return one value per sample, shape ({batch},), got {tuple(value.shape)}.")
    return value
