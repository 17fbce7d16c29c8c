"""The true largest loss increase in a ball of features, found numerically; problems to find it for."""

from typing import NamedTuple

import torch
from torch import Tensor

FRACTIONS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)  # of ‖φ‖


class HeadProblem(NamedTuple):
    logits: Tensor
    target: Tensor
    weight: Tensor
    radius: Tensor


def loss_increase(problem: HeadProblem, steps: Tensor) -> Tensor:
    """Literal ``log Σ p_j e^{a_j·u}`` of ``steps`` (batch, starts, dim), small values included."""
    log_prob, exponents = _terms(problem, steps)
    total = (log_prob.exp().unsqueeze(1) * torch.expm1(exponents)).sum(2)
    large = (log_prob.unsqueeze(1) + exponents).logsumexp(2)
    return torch.where(exponents.amax(2) < 500, total.log1p(), large)


def worst_case(problem: HeadProblem, iterations: int = 100, random_starts: int = 2) -> Tensor:
    """Largest increase over ascents from every class, from the gradient and from random directions.

    The increase is convex in the step: going to the point of the sphere in the gradient's direction climbs.
    """
    offsets = _offsets(problem)
    log_prob = problem.logits.log_softmax(1)
    gradient = (log_prob.exp().unsqueeze(2) * offsets).sum(1, keepdim=True)
    noise = torch.randn(len(offsets), random_starts, offsets.shape[2], dtype=offsets.dtype)
    steps = _on_sphere(torch.cat([offsets, gradient, noise], dim=1), problem.radius)
    for _ in range(iterations):
        shares = (log_prob.unsqueeze(1) + steps @ offsets.mT).softmax(2)
        steps = _on_sphere(shares @ offsets, problem.radius)
    return loss_increase(problem, steps).amax(1)


def _offsets(problem: HeadProblem) -> Tensor:
    """``a_j`` (batch, classes, dim)."""
    return problem.weight.unsqueeze(0) - problem.weight[problem.target].unsqueeze(1)


def _terms(problem: HeadProblem, steps: Tensor) -> tuple[Tensor, Tensor]:
    return problem.logits.log_softmax(1), steps @ _offsets(problem).mT


def _on_sphere(directions: Tensor, radius: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(directions, dim=2, keepdim=True).clamp(min=1e-200)
    return radius.view(-1, 1, 1) * directions / lengths


def random_problem(seed: int, batch: int = 64) -> HeadProblem:
    """A head of one of several shapes, features near its rows, and radii from 0.3 % to all of ‖φ‖."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def choose(*values: float) -> float:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    classes, dim = int(choose(2, 3, 4, 5, 7, 10, 17, 20, 50)), int(choose(2, 3, 5, 10, 64))
    weight = _reshaped(normal(classes, dim), choose(0, 1, 2, 3, 4), normal)
    weight = weight / weight.norm(dim=1).mean() * 10 ** uniform(-0.5, 1.1)
    towards = torch.randint(classes, (batch,), generator=generator)
    prototypes = weight[towards] / weight[towards].norm(dim=1, keepdim=True).clamp(min=1e-9)
    features = prototypes * 3 ** uniform(-0.5, 1.5) + 10 ** uniform(-1, 0.2) * normal(batch, dim)
    logits = features @ weight.T
    target = towards if choose(0, 1) else logits.argmax(1)
    fractions = torch.tensor(FRACTIONS, dtype=torch.float64)[torch.arange(batch) % len(FRACTIONS)]
    return HeadProblem(logits, target, weight, fractions * features.norm(dim=1))


def _reshaped(weight: Tensor, kind: float, normal) -> Tensor:
    """Rows that are random, in one orthant, of very different lengths, in tight clusters, or far from 0."""
    classes, dim = weight.shape
    if kind == 1:
        return weight.relu() + 1e-3
    if kind == 2:
        return weight * normal(classes, 1).exp()
    if kind == 3:
        return weight[torch.arange(classes) % max(2, classes // 2)] + 0.1 * normal(classes, dim)
    return weight + 2 * normal(1, dim) if kind == 4 else weight
