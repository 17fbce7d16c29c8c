"""Modules whose parameters are shared out among the processes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

# By name, since ``lightning`` and ``pytorch_lightning`` each have classes of their own.
_REFUSED = {"DeepSpeedStrategy", "FSDPStrategy"}
_WITH_MESH = "ModelParallelStrategy"
_HOOKS = "torch.distributed.fsdp"
"""Where the functions come from that ``fully_shard`` hooks to a module."""


def check_strategy(trainer: Trainer, monitor: str) -> None:
    """Raise ``ValueError`` where parts of a module are kept in ways that cannot be measured.

    Args:
        trainer: knows the strategy, whose processes have met.
        monitor: who wants to measure.
    """
    strategy: Any = trainer.strategy
    names = {base.__name__ for base in type(strategy).__mro__}
    if names & _REFUSED:
        raise ValueError(
            f"{monitor} cannot measure a module sharded by {type(strategy).__name__}; use ModelParallelStrategy with "
            "`fully_shard`, or take the checkpoint in one process by `trainer.validate`."
        )
    if _WITH_MESH in names and strategy.device_mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"{monitor} cannot measure with tensor_parallel_size={strategy.device_mesh['tensor_parallel'].size()}, "
            "where processes share every sample; use `data_parallel_size`, or take the checkpoint in one process by "
            "`trainer.validate`."
        )


def is_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on a part of a module."""
    return bool(_shards(module))


def _shards(module: nn.Module) -> list[Any]:
    # Who shards has imported it: importing it takes time, and is an error where torch has no ``distributed``.
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [part for part in module.modules() if isinstance(part, fsdp.FSDPModule)]


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Have all parameters on this process; with ``without_hooks``, the module is an ordinary one inside.

    All processes must enter together, by one collective for each part. Leaving takes no other process.

    Args:
        module: with parts that ``fully_shard`` was called on; between two forwards.
    """
    with ExitStack() as stack:
        for shard in _shards(module):
            stack.enter_context(_unsharded(shard))
        yield


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Run nothing of FSDP's inside but the casts of its mixed precision.

    Processes send each other nothing, neither here nor inside: each may run the module as often as it likes, and an
    error leaves FSDP as it was.

    Args:
        module: with parts that ``fully_shard`` was called on.

    Raises:
        ValueError: if FSDP's hooks are not found.
    """
    with ExitStack() as stack:
        for shard in _shards(module):
            stack.enter_context(_without_hooks(shard))
        yield


@contextmanager
def _unsharded(shard: Any) -> Iterator[None]:
    before = list(shard.parameters())
    shard.unshard()
    # Other parameters are registered now, unless the last forward has left them here, as it does for the root.
    was_sharded = any(one is not other for one, other in zip(before, shard.parameters(), strict=True))
    try:
        yield
    finally:
        if was_sharded:
            shard.reshard()


@contextmanager
def _without_hooks(shard: Any) -> Iterator[None]:
    before, behind = shard._forward_pre_hooks, shard._forward_hooks  # noqa: SLF001  there is no public way
    # Hooks are replaced in their places: others keep their order.
    places = [
        (hooks, key)
        for hooks in (before, behind)
        for key in hooks
        if (hooks[key].__module__ or "").startswith(_HOOKS)  # builtins have none
    ]
    originals = [hooks[key] for hooks, key in places]
    if not places:
        raise ValueError(f"The hooks of `fully_shard` of torch {torch.__version__} are not known; please report it.")
    policy = shard._get_fsdp_state()._mp_policy  # noqa: SLF001  likewise
    given = policy.param_dtype if policy.cast_forward_inputs else None
    try:
        for hooks, key in places:
            if hooks is before:
                hooks[key] = lambda _module, args, kwargs: (_cast(args, given), _cast(kwargs, given))
            else:
                hooks[key] = lambda _module, _args, output: _cast(output, policy.output_dtype)
        yield
    finally:
        for (hooks, key), original in zip(places, originals, strict=True):
            hooks[key] = original


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return values
    return apply_to_collection(values, Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value)
