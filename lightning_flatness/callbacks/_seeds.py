"""Random numbers that do not depend on the number of processes."""

from collections.abc import Sequence

import torch

from lightning_flatness.attacks._noise import DrawnSeeds, sample_seeds
from lightning_flatness.callbacks._step import Step


def own_generators(seed: int, dataloader_indices: Sequence[int]) -> dict[int, torch.Generator]:
    """A generator for each dataloader, in the same state on every process and in every measurement."""
    return {index: torch.Generator().manual_seed(seed) for index in dataloader_indices}


def own_seeds(step: Step, generator: torch.Generator, count: int) -> DrawnSeeds:
    """One seed per sample; samplers deal samples to the processes one by one, and so are their seeds.

    Args:
        step: knows the processes.
        generator: in the same state on each of them.
        count: number of samples, at least 1.
    """
    trainer = step.trainer
    all_seeds = sample_seeds(count * trainer.world_size, generator, torch.device("cpu"))
    own = all_seeds[trainer.global_rank :: trainer.world_size]
    seeds = DrawnSeeds(own.to(step.module.device))
    seeds.manual_seed(int(own[0]) % 2**63)
    return seeds
