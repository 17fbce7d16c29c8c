"""Random search: an attack that asks the model for nothing but logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.attacks._noise import uniform
from lightning_flatness.attacks._session import Session
from lightning_flatness.attacks.losses import margin
from lightning_flatness.attacks.threat import Norm

_FIRST_SHARE, _LAST_SHARE = 0.15, 0.005
"""Share of the positions of a sample that the first and the last proposal change."""
_STEP = {"linf": 2.0, "l2": 0.3}
"""Length of a change in epsilons: from one end of the ball to the other for linf, a small part of the way for l2."""
_FIRST_STREAM = 2**20  # far from the random starts of attacks


def run_random_search(session: Session, norm: Norm, queries: int) -> None:
    """Change a random box of each sample per query, and keep what raises the margin loss.

    The proposals of Andriushchenko et al., *Square Attack*, ECCV 2020, for boxes in any number of dimensions: stripes
    first, then boxes that shrink, with one sign per channel.

    Args:
        session: the attack's record.
        norm: the threat model's.
        queries: forward passes per sample.
    """
    run = session.start(margin, None)
    best = run.x
    best_value = torch.full_like(run.seeds, -torch.inf, dtype=run.x.dtype)
    for query in range(queries):
        if not len(run):
            break
        share = _FIRST_SHARE * (_LAST_SHARE / _FIRST_SHARE) ** (query / max(1, queries - 1))
        pattern = _box(run.seeds, query, best, share) if query else _stripes(run.seeds, best)
        size = (_STEP[norm] if query else 2.0) * run.ball.epsilon
        run.move(run.ball.project(run.ball.step(best, pattern, size)))
        seen, stays = run.look(gradient=False)
        if seen is None:
            break
        if stays is not None:
            best, best_value = best[stays], best_value[stays]
        better = seen.finite & (seen.objective > best_value)
        best = torch.where(run.ball.per_sample(better), run.x, best)
        best_value = torch.where(better, seen.objective, best_value)
    run.close()


def _stripes(seeds: Int[Tensor, " batch"], like: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """One sign per channel and place along the last dimension."""
    batch, channels, places = _grid(like)
    numbers = uniform(seeds, _FIRST_STREAM, like.new_empty(batch, channels, *[1] * (len(places) - 1), places[-1]))
    return _signs(numbers).expand(batch, channels, *places).reshape(like.shape)


def _box(
    seeds: Int[Tensor, " batch"], query: int, like: Float[Tensor, "batch *shape"], share: float
) -> Float[Tensor, "batch *shape"]:
    """One sign per channel inside a box at a random place, 0 outside."""
    batch, channels, places = _grid(like)
    numbers = uniform(seeds, _FIRST_STREAM + query, like.new_empty(batch, len(places) + channels))
    pattern = _signs(numbers[:, len(places) :]).view(batch, channels, *[1] * len(places))
    for axis, length in enumerate(places):
        side = max(1, round(share ** (1 / len(places)) * length))
        start = (numbers[:, axis, None] * (length - side + 1)).ceil() - 1
        index = torch.arange(length, device=like.device)
        inside = (index >= start) & (index < start + side)
        pattern = pattern * inside.view(batch, 1, *[1] * axis, length, *[1] * (len(places) - axis - 1))
    return pattern.reshape(like.shape)


def _grid(like: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """Number of samples, of channels, and of places along each dimension."""
    if like.ndim == 2:
        return len(like), 1, tuple(like.shape[1:])
    return len(like), like.shape[1], tuple(like.shape[2:])


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers > 0.5, 1.0, -1.0)
