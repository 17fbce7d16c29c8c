"""What an attacker may do: which norm, how far, inside which range of values."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_flatness.attacks._ball import Ball, L2Ball, LinfBall, round_towards
from lightning_flatness.attacks._noise import sample_seeds
from lightning_flatness.functional._numerics import at_least_float32, wide

Norm = Literal["linf", "l2"]
PerChannel = float | Sequence[float]
"""One number, or one for each index of the inputs' dimension 1."""

_ROUNDINGS = 8
"""Rounding errors of the inputs' dtype that may lie between an input and the end of the valid range."""


@dataclass(frozen=True)
class ThreatModel:
    """A ball around each input, cut by the range of valid values, in the data's own units.

    The data's own units are those before normalisation: pixels in [0, 1], say. Where the data module normalises,
    ``mean`` and ``std`` declare how, and the inputs that an attack is given are ``(x - mean) / std``.

    Any floating-point inputs do whose first dimension counts the samples: images, signals, tables, embeddings. The
    perturbation of float16 and bfloat16 inputs is kept in float32, and rounded towards the clean input.

    Args:
        norm: ``"linf"`` or ``"l2"``; the latter over all dimensions of a sample but the first.
        epsilon: radius of the ball; one per channel only for ``"linf"``.
        lower: smallest valid value, or None.
        upper: largest valid value, or None.
        mean: what the normalisation subtracts, or None.
        std: what the normalisation divides by, or None.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> threat = ThreatModel(epsilon=0.1)
        >>> threat.project(torch.tensor([[0.3, 0.95]]), torch.tensor([[0.5, 0.99]]))
        tensor([[0.4000, 0.9500]])
        >>> ThreatModel(epsilon=0.1, mean=0.5, std=0.25).project(torch.tensor([[2.0]]), torch.tensor([[0.0]]))
        tensor([[0.4000]])
    """

    norm: Norm = "linf"
    epsilon: PerChannel = 8 / 255
    lower: PerChannel | None = 0.0
    upper: PerChannel | None = 1.0
    mean: PerChannel | None = None
    std: PerChannel | None = None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"`norm` must be one of {', '.join(get_args(Norm))}, got {self.norm!r}.")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if isinstance(value, Sequence):
                object.__setattr__(self, field.name, tuple(map(float, value)))  # lists from YAML
            if not all(map(isfinite, _numbers(value))):
                raise ValueError(f"`{field.name}` must be finite, got {value}; None where there is no limit.")
        if min(_numbers(self.epsilon)) < 0:
            raise ValueError(f"`epsilon` must be >= 0, got {self.epsilon}.")
        if self.norm == "l2" and isinstance(self.epsilon, Sequence):
            raise ValueError(f"`epsilon` must be one number for norm='l2', got {self.epsilon}.")
        if min(_numbers(self.std), default=1.0) <= 0:
            raise ValueError(f"`std` must be > 0, got {self.std}.")
        self._check_range()

    @property
    def largest_epsilon(self) -> float:
        """Radius of the ball; where there is one per channel, the largest.

        Example:
            >>> ThreatModel(epsilon=[0.1, 0.2, 0.05]).largest_epsilon
            0.2
        """
        return max(_numbers(self.epsilon))

    def check_inputs(self, inputs: Float[Tensor, "batch *shape"]) -> None:
        """Raise ``ValueError`` where inputs are not what the threat model declares; waits for the device once.

        Args:
            inputs: as the model sees them, that is normalised if ``mean`` and ``std`` say so.

        Raises:
            ValueError: if inputs are no floating-point batch, not finite, or outside the valid range by more than
                their rounding.
        """
        if inputs.ndim < 2 or not inputs.is_floating_point():
            raise ValueError(
                f"`inputs` must be a floating-point batch of at least 2 dimensions, "
                f"got {inputs.dtype} {tuple(inputs.shape)}; convert integers, e.g. `x.float() / 255`. "
                "Token indices cannot be perturbed: leave the attack out."
            )
        if not inputs.numel():
            return
        mean, scale = self._channels("mean", inputs, 0.0), self._channels("std", inputs, 1.0)
        lower, upper = (self._channels(name, inputs, limit) for name, limit in _NO_LIMITS.items())
        data = self.in_data_units(inputs)
        size = torch.stack([mean.abs().amax(), *(limit.abs().nan_to_num(0, 0).amax() for limit in (lower, upper))])
        slack = _ROUNDINGS * torch.finfo(inputs.dtype).eps * torch.maximum(size.amax(), scale)
        inside = ((data >= lower - slack) & (data <= upper + slack)).all()
        numbers = [*data.aminmax(), inside.to(data), data.isfinite().all().to(data)]
        low, high, is_inside, is_finite = torch.stack(numbers).tolist()
        if not is_finite:
            raise ValueError(f"`inputs` must be finite, got values in [{low:.4g}, {high:.4g}].")
        if not is_inside:
            remedy = "set `lower=`/`upper=`, or `mean=`/`std=` if they are normalised"
            if self.mean is not None or self.std is not None:
                remedy = f"that is before normalisation by mean={self.mean}, std={self.std}: pass the data module's own"
            raise ValueError(
                f"`inputs` must lie in [{self.lower}, {self.upper}], got [{low:.4g}, {high:.4g}]; {remedy}."
            )

    def around(self, inputs: Float[Tensor, "batch *shape"]) -> Ball:
        """Ball around each input, with all limits in the units of the inputs; inputs are not checked.

        Args:
            inputs: as the model sees them.

        Returns:
            What the attacks work with.

        Raises:
            ValueError: if a sequence does not hold one number per channel.
        """
        scale, clean, epsilon = self._channels("std", inputs, 1.0), wide(inputs), self._channels("epsilon", inputs, 0.0)
        lower, upper = self.value_range(inputs)
        if self.norm == "linf":
            lower, upper = torch.maximum(lower, clean - epsilon / scale), torch.minimum(upper, clean + epsilon / scale)
        low, high = torch.minimum(lower, clean), torch.maximum(upper, clean)
        working = at_least_float32(inputs)
        return (LinfBall if self.norm == "linf" else L2Ball)(
            inputs=working,
            low=round_towards(low, clean, inputs.dtype).to(working.dtype),
            high=round_towards(high, clean, inputs.dtype).to(working.dtype),
            scale=scale.to(working.dtype),
            epsilon=epsilon.to(working.dtype),
            dtype=inputs.dtype,
        )

    def value_range(self, inputs: Float[Tensor, "batch *shape"]) -> tuple[Tensor, Tensor]:
        """Ends of the valid range in the units of the inputs, infinite where there is none.

        Args:
            inputs: as the model sees them.

        Returns:
            Lower and upper end, float64 (float32 on MPS), broadcastable against the inputs.

        Raises:
            ValueError: if a sequence does not hold one number per channel.

        Example:
            >>> lower, upper = ThreatModel(mean=0.5, std=0.25).value_range(torch.zeros(1, 2))
            >>> lower.item(), upper.item()
            (-2.0, 2.0)
        """
        mean, scale = self._channels("mean", inputs, 0.0), self._channels("std", inputs, 1.0)
        lower, upper = ((self._channels(name, inputs, limit) - mean) / scale for name, limit in _NO_LIMITS.items())
        return lower, upper

    def project(
        self, x_adv: Float[Tensor, "batch *shape"], inputs: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """Move perturbed inputs into the ball around the clean ones and into the valid range.

        Args:
            x_adv: perturbed inputs.
            inputs: clean inputs.

        Returns:
            Allowed inputs, in the dtype of ``inputs``.
        """
        ball = self.around(inputs)
        return ball.realise(ball.project(x_adv.to(ball.inputs.dtype)))

    def random_start(
        self, inputs: Float[Tensor, "batch *shape"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Draw a point uniformly from each ball and move it into the valid range.

        Args:
            inputs: clean inputs.
            generator: source of one seed per sample; None for one seeded with 0.

        Returns:
            Perturbed inputs, in the dtype of ``inputs``.
        """
        ball = self.around(inputs)
        return ball.realise(ball.random_start(sample_seeds(len(inputs), generator, inputs.device), 0))

    def step(
        self, x_adv: Float[Tensor, "batch *shape"], gradient: Float[Tensor, "batch *shape"], step_size: float
    ) -> Float[Tensor, "batch *shape"]:
        """Go along the gradient: by its sign for ``"linf"``, by its direction for ``"l2"``; not projected.

        Args:
            x_adv: perturbed inputs.
            gradient: of what is to grow, in ``x_adv``.
            step_size: length of the step in data units.

        Returns:
            Further perturbed inputs, in float32 or wider.
        """
        return self.around(x_adv).step(at_least_float32(x_adv), at_least_float32(gradient), step_size)

    def distance(
        self, x_adv: Float[Tensor, "batch *shape"], inputs: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """Norm of each perturbation in data units.

        Args:
            x_adv: perturbed inputs.
            inputs: clean inputs.

        Returns:
            Distances, float64 (float32 on MPS).

        Example:
            >>> ThreatModel(norm="l2", std=2.0).distance(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
            tensor([10.], dtype=torch.float64)
        """
        shift = ((wide(x_adv) - wide(inputs)) * self._channels("std", inputs, 1.0)).flatten(1)
        norm: Tensor = torch.linalg.vector_norm(shift, torch.inf if self.norm == "linf" else 2, dim=1)
        return norm

    def in_data_units(self, inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Inputs before normalisation.

        Args:
            inputs: as the model sees them.

        Returns:
            ``inputs * std + mean``, float64 (float32 on MPS).

        Example:
            >>> ThreatModel(mean=0.5, std=0.25).in_data_units(torch.tensor([[-2.0, 2.0]]))
            tensor([[0., 1.]], dtype=torch.float64)
        """
        return wide(inputs) * self._channels("std", inputs, 1.0) + self._channels("mean", inputs, 0.0)

    def _check_range(self) -> None:
        if self.lower is None or self.upper is None:
            return
        if not all(low < high for low, high in channelwise(self.lower, self.upper)):
            raise ValueError(f"`lower` must be < `upper`, got {self.lower} and {self.upper}.")

    def _channels(self, name: str, inputs: Tensor, default: float) -> Tensor:
        """Field as a tensor that broadcasts against ``inputs``."""
        numbers = torch.tensor(_numbers(getattr(self, name)) or (default,), dtype=torch.float64)
        numbers = numbers.to(inputs.device, wide(inputs[:0]).dtype)
        if len(numbers) not in {1, inputs.shape[1]}:
            raise ValueError(
                f"`{name}` must hold one number per channel ({inputs.shape[1]}), got {len(numbers)}; "
                "channels are dimension 1 of the inputs."
            )
        return numbers.view(1, -1, *[1] * (inputs.ndim - 2))


_NO_LIMITS = {"lower": -torch.inf, "upper": torch.inf}


def _numbers(value: PerChannel | None) -> tuple[float, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Sequence) else (value,)


def channelwise(*values: PerChannel) -> list[tuple[float, ...]]:
    """Values of each channel, side by side; one number is that of every channel."""
    rows = [_numbers(value) for value in values]
    return [tuple(row[k % len(row)] for row in rows) for k in range(max(map(len, rows)))]
