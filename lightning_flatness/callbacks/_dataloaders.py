"""Which dataloaders a trainer evaluates, and which of their samples this process counts."""

from collections.abc import Sequence
from math import ceil
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DistributedSampler


class Selection:
    """What one evaluation measures: some of its dataloaders, and leading samples of each.

    Attributes:
        num_dataloaders: that are evaluated, measured or not.
    """

    def __init__(self) -> None:
        self.num_dataloaders = 1
        self._room: dict[int, int | None] = {}

    def begin(self, trainer: Trainer, dataloaders: Sequence[int] | None, max_samples: int | None) -> None:
        """Select from what is evaluated now.

        Args:
            trainer: validates or tests.
            dataloaders: what the user wants; None for all.
            max_samples: most samples of each dataloader over all processes; None for all.

        Raises:
            ValueError: if there is no such dataloader.
        """
        loaders = _evaluated_dataloaders(trainer)
        self.num_dataloaders = len(loaders)
        chosen = _chosen_dataloaders(dataloaders, len(loaders))
        self._room = {index: _own_share(trainer, loaders[index], max_samples) for index in chosen}

    @property
    def indices(self) -> list[int]:
        """Indices of the dataloaders that are measured."""
        return list(self._room)

    def has_room(self, dataloader_idx: int) -> bool:
        """Whether further samples of a dataloader may count."""
        return self._room.get(dataloader_idx, 0) != 0

    def claim(self, samples: int, dataloader_idx: int) -> int:
        """Count the leading samples of a batch that still fit, and return their number."""
        room = self._room[dataloader_idx]
        if room is None:
            return samples
        claimed = min(samples, room)
        self._room[dataloader_idx] = room - claimed
        return claimed

    def end(self) -> None:
        """Select nothing."""
        self._room = {}


def _evaluated_dataloaders(trainer: Trainer) -> list[Any]:
    """Validation or test dataloaders in the order of their index; None where several are combined to one.

    Args:
        trainer: validates or tests.
    """
    dataloaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loaders = [] if dataloaders is None else list(CombinedLoader(dataloaders, "sequential").flattened)
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    if len(batches) != len(loaders):
        loaders = loaders[:1] if len(loaders) == 1 else [None] * len(batches)
    return loaders


def _chosen_dataloaders(chosen: Sequence[int] | None, count: int) -> list[int]:
    """Indices of the dataloaders to measure.

    Args:
        chosen: what the user wants; None for all.
        count: number of dataloaders.

    Raises:
        ValueError: if there is no such dataloader.
    """
    indices = list(range(count) if chosen is None else chosen)
    if not all(0 <= index < count for index in indices):
        raise ValueError(f"`dataloaders` must be in [0, {count}), got {indices}.")
    return indices


def _own_share(trainer: Trainer, dataloader: Any, max_samples: int | None) -> int | None:
    """Most leading samples that this process measures; None for all.

    Args:
        trainer: knows the processes.
        dataloader: of this process.
        max_samples: most samples over all processes; None for all.
    """
    shares = [_own_samples(dataloader)]
    if max_samples is not None:
        shares.append(share_of(trainer, max_samples))
    return min((share for share in shares if share is not None), default=None)


def share_of(trainer: Trainer, samples: int) -> int:
    """Samples that this process takes of a number of samples."""
    return (samples + trainer.world_size - 1 - trainer.global_rank) // trainer.world_size


def _own_samples(dataloader: Any) -> int | None:
    """Samples that this process has to count; None where every one counts.

    A ``DistributedSampler`` repeats samples at the end until all processes have as many; those are counted elsewhere.
    """
    samplers = (
        getattr(dataloader, "sampler", None),
        getattr(getattr(dataloader, "batch_sampler", None), "sampler", None),
    )
    sampler = next((found for found in samplers if isinstance(found, DistributedSampler)), None)
    if sampler is None or sampler.drop_last:
        return None
    return max(0, ceil((len(sampler.dataset) - sampler.rank) / sampler.num_replicas))  # type: ignore[arg-type]
