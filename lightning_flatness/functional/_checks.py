"""What every public function of tensors asks of its arguments, checked once at the boundary."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_flatness.functional._logit_loss import LogitLoss, check_classes
from lightning_flatness.functional._numerics import wide

FlatnessVariant = Literal["neuronwise", "layerwise", "maxeig"]
_SUM_ROUNDING = 0.02  # of probabilities in bfloat16
_WEIGHTS = (1e-100, 1e100)  # squares of lengths neither underflow nor overflow


def check_variant(variant: str) -> FlatnessVariant:
    """Return ``variant``, or raise ``ValueError`` where there is no such relative flatness."""
    if variant not in get_args(FlatnessVariant):
        raise ValueError(f"`variant` must be one of {', '.join(get_args(FlatnessVariant))}, got {variant!r}.")
    return cast(FlatnessVariant, variant)


def check_head_inputs(features: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None) -> None:
    """Raise ``ValueError`` where dtypes or shapes of a linear head's tensors do not fit together."""
    check_matrix("features", features)
    check_head(weight, logits)
    check_same_batch(features, logits)
    if features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"`features` must have as many columns as `weight` ({weight.shape[1]}), got {features.shape[1]}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must have shape ({weight.shape[0]},), got {tuple(bias.shape)}.")


def check_head(weight: Tensor, logits: Tensor) -> None:
    """Raise ``ValueError`` where ``weight`` and ``logits`` are not those of one linear head."""
    check_matrix("weight", weight)
    check_matrix("logits", logits)
    if logits.shape[1] != weight.shape[0]:
        raise ValueError(
            f"`logits` must have one column per row of `weight` ({weight.shape[0]}), got {logits.shape[1]}."
        )


def check_classification(logits: Tensor, target: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` where logits, classes and a linear head do not fit together or are not finite."""
    check_head(weight, logits)
    if logits.shape[1] < 2:
        raise ValueError(f"`logits` must have at least 2 columns, one per class, got {logits.shape[1]}.")
    check_classes(logits, target)
    check_finite(logits=logits, weight=weight)
    largest = torch.linalg.vector_norm(weight, torch.inf).item() if weight.dtype == torch.float64 else 0.0
    if largest > 0 and not _WEIGHTS[0] < largest < _WEIGHTS[1]:
        raise ValueError(
            f"`weight` must have its largest entry between {_WEIGHTS[0]:g} and {_WEIGHTS[1]:g}, got {largest:g}; "
            "rescale it, and radii by the inverse."
        )
    bad = target[(target < 0) | (target >= logits.shape[1])]
    if bad.numel():
        raise ValueError(f"`target` must be in [0, {logits.shape[1]}), got {int(bad[0])}; leave ignored samples out.")


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` is a floating-point matrix."""
    if tensor.ndim != 2:
        raise ValueError(
            f"`{name}` must have 2 dimensions, got shape {tuple(tensor.shape)}; flatten the leading dimensions."
        )
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be floating point, got {tensor.dtype}.")


def check_same_batch(features: Tensor, logits: Tensor) -> None:
    """Raise ``ValueError`` unless both hold the same number of samples."""
    if len(features) != len(logits):
        raise ValueError(f"`features` and `logits` must hold as many samples, got {len(features)} and {len(logits)}.")


def check_finite(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` where a tensor holds NaN or infinity; one wait for the device for all of them."""
    present = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None and tensor.numel()}
    if not present:
        return
    finite = torch.stack([torch.stack(torch.aminmax(tensor)).isfinite().all() for tensor in present.values()])
    for name, is_finite in zip(present, finite.tolist(), strict=True):
        if not is_finite:
            raise ValueError(f"`{name}` must be finite, got {_first_not_finite(present[name])}.")


def _first_not_finite(tensor: Tensor) -> str:
    place = tensor.isfinite().logical_not().nonzero()[0].tolist()
    return f"{tensor[tuple(place)].item()} at {place}"


def check_target(loss: LogitLoss, logits: Tensor, target: Tensor | None, *, values: bool = True) -> Tensor | None:
    """Return ``target``, integers as int64; raise ``ValueError`` where the loss needs one or it does not fit."""
    loss.check_logits(logits)
    if target is None:
        if loss.needs_target:
            raise ValueError(f"`target` must be given for {type(loss).__name__}, whose Hessian needs it, got None.")
        return None
    loss.check_target(logits, target)
    if target.is_floating_point():
        if values:
            check_finite(target=target)
        return target
    target = target if target.dtype == torch.bool else target.long()
    if values:
        loss.check_target_values(logits, target)
    return target


def check_counts(**counts: int) -> None:
    """Raise ``ValueError`` where a number of steps, runs or samples is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be >= 1, got {count}.")


def check_confidence(confidence: float) -> None:
    """Raise ``ValueError`` unless ``confidence`` is that of an interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")


def check_epsilons(epsilons: Sequence[float]) -> None:
    """Raise ``ValueError`` unless ``epsilons`` are radii of nested balls, from small to large."""
    if not epsilons or not all(small < large for small, large in pairwise([0.0, *epsilons, inf])):
        raise ValueError(f"`epsilons` must be > 0, finite and strictly increasing, got {list(epsilons)}.")


def check_num_classes(num_classes: int | None) -> None:
    """Raise ``ValueError`` unless ``num_classes`` is a number of classes or None."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"`num_classes` must be >= 1 or None, got {num_classes}.")


def check_scales(scales: Sequence[float]) -> None:
    """Raise ``ValueError`` unless ``scales`` are different factors of a head."""
    if not scales or not all(0 < scale < inf for scale in scales):
        raise ValueError(f"`scales` must be at least one number, > 0 and finite, got {list(scales)}.")
    if len(set(scales)) < len(scales):
        raise ValueError(f"`scales` must differ, got {list(scales)}.")


def check_radii(radii: Sequence[float]) -> None:
    """Raise ``ValueError`` unless ``radii`` are lengths of perturbations."""
    if not radii or not all(0 < radius < inf for radius in radii):
        raise ValueError(f"`radii` must be at least one number, > 0 and finite, got {list(radii)}.")


def are_probabilities(target: Float[Tensor, "*batch classes"]) -> bool:
    """Whether every row is one of probabilities, up to the rounding of half precision; waits for the device."""
    rows = wide(target)
    return bool(((rows >= 0).all(-1) & ((rows.sum(-1) - 1).abs() < _SUM_ROUNDING)).all())


def finite_rows(rows: Float[Tensor, "batch dim"]) -> Bool[Tensor, " batch"]:
    """Whether all numbers of a row are finite; no temporary as large as ``rows``."""
    return rows.amax(1).isfinite() & rows.amin(1).isfinite()


def flatten_leading(features: Tensor, logits: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Make one sample of every position; targets are classes or as wide as ``logits``. No gradient is kept.

    Raises:
        ValueError: if the leading dimensions do not fit together.
    """
    leading = logits.shape[:-1]
    if features.shape[:-1] != leading:
        raise ValueError(
            f"`features` and `logits` must have the same leading dimensions, "
            f"got {tuple(features.shape)} and {tuple(logits.shape)}."
        )
    if target is not None:
        if target.shape not in {leading, logits.shape}:
            raise ValueError(
                f"`target` must have shape {tuple(leading)} or {tuple(logits.shape)}, got {tuple(target.shape)}."
            )
        target = target.reshape(-1, *target.shape[len(leading) :])
    features, logits = features.detach(), logits.detach()
    return features.reshape(-1, features.shape[-1]), logits.reshape(-1, logits.shape[-1]), target
