r"""A bound that tells the directions of competing classes apart.

Expand ``e^{a·u/2}`` into its power series: it is the inner product of ``⊕ₘ a^{⊗m} / (2^m √(t^m m!))`` and
``⊕ₘ √(t^m / m!) u^{⊗m}`` for every ``t > 0``, whose Gram matrices are ``e^{a_j·a_k / 4t}`` and ``e^{t‖u‖²}``. With
``e^{a·u} = (e^{a·u/2})²``, a sum of squares of inner products is at most the squared length of ``u``'s vector times
the largest eigenvalue of the Gram matrix of the others:

``Σ p_j e^{a_j·u} ≤ e^{tρ²} λ_max[√(p_j p_k) e^{a_j·a_k / 4t}]``.

Since ``a_j·a_k = (‖a_j‖² + ‖a_k‖² − ‖w_j − w_k‖²) / 2``, classes whose rows are far apart hardly add up.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_flatness.functional._local_loss import LeadingClasses, log_expm1

_STEPS = 4  # of the search for t; fewer leave the bound looser, never wrong
_SLOW = 0.25  # share of the leading reach below which no t suits a class, so that its own maximum is added
_ROUNDING = 1e-12  # what eigenvalue and exponentials may be wrong by


def log_kernel_bound(leading: LeadingClasses, log_rest: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Bound ``log max S(u)``; ``log_rest`` bounds what classes other than the leading ones add to ``S``."""
    log_prob, reach = leading.log_prob, leading.reach
    leader = (log_prob + reach).argmax(1, keepdim=True)
    slow = reach < _SLOW * reach.gather(1, leader)
    fast_log_prob = log_prob.masked_fill(slow, -torch.inf)
    log_sum = _minimise(fast_log_prob, leading.gram, reach, leader)
    log_gain = _log_difference(log_sum + _ROUNDING, fast_log_prob.logsumexp(1))
    slow_gain = (log_prob + log_expm1(reach)).masked_fill(~slow, -torch.inf).logsumexp(1)
    return torch.stack([log_gain, slow_gain, log_rest]).logsumexp(0)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """``log(e^larger − e^smaller)``."""
    return larger + (-torch.expm1(smaller - larger)).log()


def _minimise(log_prob: Tensor, gram: Tensor, reach: Tensor, leader: Tensor) -> Tensor:
    """``log min_t e^t λ_max``; lengths in units of ``ρ``.

    With ``θ = 1/4t`` the logarithm is convex; its derivative vanishes where ``θ`` is ``1/2√m``, ``m`` the mean of
    ``a_j·a_k`` under the eigenvector. Alone, a class has ``θ = 1/2R``.
    """
    sq_reach = reach.square()
    sq_distances = (sq_reach.unsqueeze(2) + sq_reach.unsqueeze(1) - 2 * gram).clamp(min=0)
    sq_distances.diagonal(dim1=1, dim2=2).zero_()
    theta = 0.5 / reach.gather(1, leader).clamp(min=1e-150)
    low, high = torch.zeros_like(theta), torch.full_like(theta, torch.inf)
    vector = torch.ones_like(log_prob)
    for _ in range(_STEPS):
        matrix, _ = _matrix(theta, log_prob, sq_reach, sq_distances)
        for _ in range(2):
            vector = (matrix @ vector.unsqueeze(2)).squeeze(2)
            vector = vector / vector.amax(1, keepdim=True)
        shares = vector.unsqueeze(2) * matrix * vector.unsqueeze(1)
        mean = ((shares * gram).sum((1, 2)) / shares.sum((1, 2))).unsqueeze(1)
        target = (0.5 / mean.clamp(min=1e-300).sqrt()).clamp(max=16 * theta)
        low, high = torch.where(target > theta, theta, low), torch.where(target < theta, theta, high)
        step, middle = (theta * target).sqrt(), (low * high).sqrt()
        middle = torch.where((low > 0) & (high < torch.inf), middle, theta)
        theta = torch.where((low < step) & (step < high), step, middle)
    matrix, shift = _matrix(theta, log_prob, sq_reach, sq_distances)
    top: Tensor = torch.linalg.eigvalsh(matrix)[:, -1]
    return top.log() + (shift + 0.25 / theta).squeeze(1)


def _matrix(theta: Tensor, log_prob: Tensor, sq_reach: Tensor, sq_distances: Tensor) -> tuple[Tensor, Tensor]:
    """``√(p_j p_k) e^{θ a_j·a_k}`` divided by its largest entry, and the logarithm of that."""
    exponents = log_prob + theta * sq_reach
    shift = exponents.amax(1, keepdim=True)
    scale = ((exponents - shift) / 2).exp()
    return scale.unsqueeze(2) * (-0.5 * theta.unsqueeze(2) * sq_distances).exp() * scale.unsqueeze(1), shift
