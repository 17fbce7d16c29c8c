"""What a batch holds: inputs, targets, samples, and the rows of the head that belong to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_flatness.functional._affine import HeadCall

InputsAndTargets = Callable[[Any], tuple[Any, Any]]
"""Maps a batch to its inputs and its targets; targets may be None."""

_INPUT_NAMES = ("x", "image", "images", "input", "inputs", "pixel_values", "input_ids")
_TARGET_NAMES = ("y", "label", "labels", "target", "targets")


def default_inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Take the parts of a mapping, data class or named tuple with the usual names, or the first two of a sequence.

    Args:
        batch: what the dataloader gives, on the device.

    Returns:
        Inputs and targets; targets are None where the batch is a tensor alone.

    Raises:
        ValueError: if the batch has another form.

    Example:
        >>> default_inputs_and_targets({"image": 1, "label": 2})
        (1, 2)
    """
    if isinstance(batch, Tensor):
        return batch, None
    named = _named_parts(batch)
    inputs = [name for name in _INPUT_NAMES if name in named]
    targets = [name for name in _TARGET_NAMES if name in named]
    if inputs and targets:
        return named[inputs[0]], named[targets[0]]
    if isinstance(batch, Sequence) and len(batch) >= 2:
        return batch[0], batch[1]
    if named:
        raise ValueError(
            f"The batch has the keys {', '.join(map(repr, named))}; "
            "pass `inputs_and_targets=` a function that picks the inputs and the targets."
        )
    raise ValueError(
        f"The batch is a {type(batch).__name__}; pass `inputs_and_targets=` a function that maps it to a pair."
    )


def _named_parts(batch: object) -> Mapping[Any, Any]:
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, tuple):
        return dict(zip(getattr(batch, "_fields", ()), batch, strict=False))
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {}


def leading_samples(
    calls: Sequence[HeadCall], target: Tensor | None, samples: int, count: int
) -> tuple[list[HeadCall], Tensor | None]:
    """Keep what belongs to the first ``count`` of the ``samples`` of a batch; a sample may have several rows.

    Args:
        calls: calls of the head: one, views of the batch, or consecutive parts of it.
        target: targets of the batch, or None.
        samples: samples in the batch.
        count: samples to keep, fewer.

    Returns:
        The shortened calls and targets.

    Raises:
        ValueError: if rows cannot be told to belong to samples.
    """
    rows = [len(call.logits) for call in calls]
    views = len(set(rows)) == 1 and rows[0] % samples == 0
    if not views and sum(rows) % samples:
        raise ValueError(f"The head must see a multiple of the batch's {samples} samples, got {rows} rows.")
    kept: list[HeadCall] = []
    left = 0 if views else count * sum(rows) // samples
    for call, length in zip(calls, rows, strict=True):
        share = count * length // samples if views else min(left, length)
        left -= 0 if views else share
        kept.append(call._replace(features=call.features[:share], logits=call.logits[:share]))
    return kept, None if target is None else target[: count * len(target) // samples]


def batch_length(batch: Any) -> int | None:
    """Length of the first tensor anywhere in a batch, or in a part of it; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts = _named_parts(batch).values() or (batch if isinstance(batch, list | tuple) else ())
    return next((length for length in map(batch_length, parts) if length is not None), None)


def join_calls(calls: Sequence[HeadCall], target: Tensor | None) -> tuple[HeadCall, Tensor | None]:
    """Make one call of several: chunks of one batch follow each other, views of one batch share their targets.

    Args:
        calls: at least one call of the head.
        target: targets of the batch, or None.

    Returns:
        The joined call and its targets.

    Raises:
        ValueError: if the calls do not fit the targets.
    """
    last = calls[-1]
    if target is not None and len(calls) > 1:
        rows = [len(call.logits) for call in calls]
        if all(count == len(target) for count in rows):
            target = torch.cat([target] * len(calls))
        elif sum(rows) != len(target):
            raise ValueError(
                f"The head was called {len(calls)} times, with {rows} rows for {len(target)} targets; "
                "pass `inputs_and_targets=` a function that gives one target per row."
            )
    if len(calls) == 1:
        return last, target
    features = torch.cat([call.features for call in calls])
    return last._replace(features=features, logits=torch.cat([call.logits for call in calls])), target
