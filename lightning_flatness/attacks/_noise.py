"""Random starts that depend on a sample's own seed only, not on the samples beside it."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_flatness.functional._numerics import TILE_ELEMENTS, chunks

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64, Steele et al., OOPSLA 2014
_BITS = 24  # all that float32 holds in [0, 1)


class DrawnSeeds(torch.Generator):
    """Seeds drawn before: takes the place of a generator in an attack on part of the batch they were drawn for.

    Args:
        seeds: one per sample of that part.
    """

    def __new__(cls, seeds: Int[Tensor, " batch"]) -> "DrawnSeeds":
        """Keep ``seeds`` from the constructor of generators, which wants a device."""
        del seeds
        return super().__new__(cls)

    def __init__(self, seeds: Int[Tensor, " batch"]) -> None:
        self.seeds = seeds


def sample_seeds(count: int, generator: torch.Generator | None, device: torch.device) -> Int[Tensor, " batch"]:
    """Draw one seed per sample, the only random numbers that an attack takes from ``generator``.

    The CPU's generator gives them in sequence, so that any split of a data set into batches gets the same seeds.
    """
    if isinstance(generator, DrawnSeeds):
        return generator.seeds[:count]
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, device=generator.device)
    return seeds.to(device)


def uniform(seeds: Int[Tensor, " batch"], stream: int, like: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "..."]:
    """Independent numbers in (0, 1], float32, in the shape and memory format of ``like``.

    Args:
        seeds: one per sample.
        stream: counts the starts of one sample.
        like: gives shape and memory format.
    """
    noise = torch.empty_like(like, dtype=torch.float32)
    per_sample = max(1, like[0].numel()) if len(like) else 1
    counter = _signed(_GOLDEN) * torch.arange(1, per_sample + 1, device=like.device)
    keys = _mix(seeds + _signed(_GOLDEN * (stream + 1)))
    for rows in chunks(len(like), TILE_ELEMENTS // per_sample):
        bits = _shift(_mix(keys[rows].unsqueeze(1) + counter), 64 - _BITS)
        noise[rows] = ((bits + 0.5) / 2**_BITS).view(noise[rows].shape)
    return noise


def normal(seeds: Int[Tensor, " batch"], stream: int, like: Shaped[Tensor, "batch *shape"]) -> Float[Tensor, "..."]:
    """Independent standard normal numbers, otherwise as :func:`uniform`."""
    # 0.5 + 2**24 rounds to an even number in float32, hence the clamp.
    numbers: Tensor = torch.special.ndtri(uniform(seeds, stream, like).clamp(2**-25, 1 - 2**-24))
    return numbers


def _mix(bits: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _MIX, strict=True):
        bits = (bits ^ _shift(bits, shift)) * _signed(factor)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right, which torch has for no signed type."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
