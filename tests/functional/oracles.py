"""Slow references: literal autograd Hessians, mpmath, and float64 sums in which nothing cancels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from lightning_flatness.functional.losses import (
    AutogradLoss,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    Huber,
    MeanSquaredError,
    PoissonNLL,
    TrueClassLoss,
)

mpmath.mp.dps = 150

VARIANTS = ["neuronwise", "layerwise", "maxeig"]


# Losses, each with the function of (logits, target) that it claims to describe.


@dataclass(frozen=True)
class LossCase:
    name: str
    loss: Callable[[int], object]  # number of classes -> what is given to `loss=`
    reference: Callable[[Tensor, Tensor], Tensor]  # logits (1, K), target (1, ...) -> scalar
    kind: str = "classes"
    kink: float | None = None  # |residual| at which the second derivative jumps

    def __str__(self) -> str:
        return self.name

    def target(self, raw: Tensor) -> Tensor:
        """Make a target of this loss from arbitrary numbers as wide as the logits."""
        kinds = {"soft": raw.softmax(1), "real": raw, "probs": raw.sigmoid(), "counts": raw.abs().round()}
        return raw.argmax(1) if self.kind == "classes" else kinds[self.kind]


_CLASS_WEIGHT = torch.tensor([0.3, 1.7, 2.2, 0.6], dtype=torch.float64)


def _like_logits(function):
    """Give ``function`` the class weights that fit the logits."""
    return lambda z, y: function(z, y, _CLASS_WEIGHT[: z.shape[1]])


def _true_class(function):
    return lambda z, y: function(z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1), y).sum()


def _focal(gamma, alpha=None):
    def loss(log_prob, y):
        return (1 if alpha is None else alpha[y]) * -((1 - log_prob.exp()) ** gamma) * log_prob

    return _true_class(loss)


def poly_one(log_prob, _):
    return -log_prob + 1.5 * (1 - log_prob.exp())


def generalised_cross_entropy(log_prob, _):
    return (1 - (0.7 * log_prob).exp()) / 0.7


def brier(z, y):
    return (z.softmax(1) - nn.functional.one_hot(y, z.shape[1])).square().sum(1)


class BrierModule(nn.Module):
    def forward(self, z, y):
        return brier(z, y)


CASES = [
    LossCase("cross_entropy", lambda _: "cross_entropy", nn.functional.cross_entropy),
    LossCase(
        "label_smoothing",
        lambda _: CrossEntropy(label_smoothing=0.2),
        lambda z, y: nn.functional.cross_entropy(z, y, label_smoothing=0.2),
    ),
    LossCase("soft_targets", lambda _: CrossEntropy(), nn.functional.cross_entropy, "soft"),
    LossCase(
        "class_weights",
        lambda k: CrossEntropy(weight=_CLASS_WEIGHT[:k]),
        _like_logits(lambda z, y, w: nn.functional.cross_entropy(z, y, w, reduction="sum")),
    ),
    LossCase(
        "class_weights_smoothing",
        lambda k: CrossEntropy(weight=_CLASS_WEIGHT[:k], label_smoothing=0.3),
        _like_logits(lambda z, y, w: nn.functional.cross_entropy(z, y, w, reduction="sum", label_smoothing=0.3)),
    ),
    LossCase(
        "class_weights_smoothing_soft_targets",
        lambda k: CrossEntropy(weight=_CLASS_WEIGHT[:k], label_smoothing=0.3),
        _like_logits(lambda z, y, w: nn.functional.cross_entropy(z, y, w, label_smoothing=0.3)),
        "soft",
    ),
    LossCase(
        "temperature", lambda _: CrossEntropy(temperature=2.5), lambda z, y: nn.functional.cross_entropy(z / 2.5, y)
    ),
    LossCase(
        "ignore_index",
        lambda k: CrossEntropy(weight=_CLASS_WEIGHT[:k], ignore_index=1),
        _like_logits(lambda z, y, w: nn.functional.cross_entropy(z, y, w, reduction="sum", ignore_index=1)),
    ),
    LossCase("mse_mean", lambda _: "mse", nn.functional.mse_loss, "real"),
    LossCase(
        "mse_sum", lambda _: MeanSquaredError("sum"), lambda z, y: nn.functional.mse_loss(z, y, reduction="sum"), "real"
    ),
    LossCase("bce", lambda _: "binary_cross_entropy", nn.functional.binary_cross_entropy_with_logits, "probs"),
    LossCase(
        "bce_weight_sum",
        lambda k: BinaryCrossEntropy(weight=_CLASS_WEIGHT[:k], reduction="sum"),
        _like_logits(lambda z, y, w: nn.functional.binary_cross_entropy_with_logits(z, y, w, reduction="sum")),
        "probs",
    ),
    LossCase(
        "bce_pos_weight",
        lambda k: BinaryCrossEntropy(pos_weight=_CLASS_WEIGHT[:k]),
        _like_logits(lambda z, y, w: nn.functional.binary_cross_entropy_with_logits(z, y, pos_weight=w)),
        "probs",
    ),
    LossCase(
        "huber", lambda _: Huber(delta=0.7), lambda z, y: nn.functional.huber_loss(z, y, delta=0.7), "real", kink=0.7
    ),
    LossCase(
        "smooth_l1_sum",
        lambda _: nn.SmoothL1Loss(beta=0.5, reduction="sum"),
        lambda z, y: nn.functional.smooth_l1_loss(z, y, beta=0.5, reduction="sum"),
        "real",
        kink=0.5,
    ),
    LossCase("poisson_mean", lambda _: "poisson_nll", nn.functional.poisson_nll_loss, "counts"),
    LossCase(
        "poisson_sum",
        lambda _: PoissonNLL("sum"),
        lambda z, y: nn.functional.poisson_nll_loss(z, y, reduction="sum"),
        "counts",
    ),
    LossCase("focal_0", lambda _: Focal(0.0), _focal(0.0)),
    LossCase("focal_half", lambda _: Focal(0.5), _focal(0.5)),
    LossCase("focal_2", lambda _: "focal", _focal(2.0)),
    LossCase("focal_alpha", lambda k: Focal(1.5, alpha=_CLASS_WEIGHT[:k]), _focal(1.5, alpha=_CLASS_WEIGHT)),
    LossCase(
        "focal_ignore_index", lambda _: Focal(ignore_index=0), lambda z, y: _focal(2.0)(z, y) * (y != 0).squeeze()
    ),
    LossCase("poly_one", lambda _: TrueClassLoss(poly_one), _true_class(poly_one)),
    LossCase(
        "generalised_ce", lambda _: TrueClassLoss(generalised_cross_entropy), _true_class(generalised_cross_entropy)
    ),
    LossCase("linear_in_log_prob", lambda _: TrueClassLoss(lambda u, _: -2 * u), _true_class(lambda u, _: -2 * u)),
    LossCase("brier_function", lambda _: brier, lambda z, y: brier(z, y).sum()),
    LossCase("brier_module", lambda _: BrierModule(), lambda z, y: brier(z, y).sum()),
    LossCase("no_curvature", lambda _: AutogradLoss(lambda z, y: (z * y).sum(1)), lambda z, y: (z * y).sum(), "real"),
]
CASE = {case.name: case for case in CASES}


# The definition, by automatic differentiation through the parameters.


def head_hessian(case: LossCase, features: Tensor, weight: Tensor, shift: Tensor, target: Tensor) -> Tensor:
    """Hessian (K, d, K, d) of one sample's loss in ``weight``, with logits ``weight @ features + shift``."""
    point = torch.zeros_like(weight)
    logits = weight @ features + shift

    def loss(step: Tensor) -> Tensor:
        return case.reference((logits + step @ features).unsqueeze(0), target.unsqueeze(0))

    return hessian(loss, point)


def flatness_of_hessian(block: Tensor, weight: Tensor) -> dict[str, float]:
    """Every variant by its definition."""
    size = weight.numel()
    sq_norm = weight.square().sum()
    return {
        "neuronwise": torch.einsum("si,ti,sete->", weight, weight, block).item(),
        "layerwise": (sq_norm * torch.einsum("sese->", block)).item(),
        "maxeig": (sq_norm * torch.linalg.eigvalsh(block.reshape(size, size))[-1]).item(),
    }


# Softmax cross-entropy, accurate at every confidence; divided by ‖φ‖².


def mp_softmax(logits: Tensor) -> tuple[list[mpmath.mpf], list[mpmath.mpf]]:
    """``p`` and ``1 − p``, each a sum of positive numbers."""
    terms = [mpmath.exp(mpmath.mpf(z)) for z in logits.tolist()]
    total = mpmath.fsum(terms)
    others = [mpmath.fsum(terms[:k] + terms[k + 1 :]) for k in range(len(terms))]
    return [term / total for term in terms], [other / total for other in others]


def mp_variance(weight: Tensor, logits: Tensor) -> mpmath.mpf:
    """``½ Σ p_j p_k ‖w_j − w_k‖²``."""
    rows = [[mpmath.mpf(x) for x in row] for row in weight.tolist()]
    p, _ = mp_softmax(logits)
    pairs = ((j, k) for j in range(len(p)) for k in range(j))
    return mpmath.fsum(p[j] * p[k] * sum((a - b) ** 2 for a, b in zip(rows[j], rows[k], strict=True)) for j, k in pairs)


def mp_trace(logits: Tensor) -> mpmath.mpf:
    return mpmath.fdot(*mp_softmax(logits))


def mp_hessian(logits: Tensor) -> mpmath.matrix:
    p, rest = mp_softmax(logits)
    size = range(len(p))
    return mpmath.matrix([[p[j] * rest[j] if j == k else -p[j] * p[k] for k in size] for j in size])


def mp_top_eigenvalue(matrix: mpmath.matrix) -> mpmath.mpf:
    return max(mpmath.eigsy(matrix, eigvals_only=True))


def mp_focal_hessian(logits: Tensor, gamma: float, target: int) -> mpmath.matrix:
    """``g'' (e_y − p)(e_y − p)ᵀ − g' (diag p − ppᵀ)`` of ``g(u) = −q^γ u``, ``q = 1 − e^u``, by hand."""
    p, rest = mp_softmax(logits)
    gamma, u, q = mpmath.mpf(gamma), mpmath.log1p(-rest[target]), rest[target]
    slope = gamma * q ** (gamma - 1) * p[target] * u - q**gamma
    bend = gamma * p[target] * (q ** (gamma - 1) * (u + 2) - (gamma - 1) * q ** (gamma - 2) * p[target] * u)
    residual = mpmath.matrix([q if k == target else -p[k] for k in range(len(p))])
    return bend * residual * residual.T - slope * mp_hessian(logits)


def pairwise_variance(weight: Tensor, logits: Tensor) -> Tensor:
    """``½ pᵀ D p`` of each row of ``logits``, with squared distances ``D`` from exact differences."""
    rows, p = weight.double(), logits.double().softmax(1)
    distances = sum((column.unsqueeze(0) - column.unsqueeze(1)).square() for column in rows.T)
    return ((p @ distances) * p).sum(1) / 2


def peeled_variance(weight: Tensor, logits: Tensor) -> Tensor:
    """Literal leave-one-out of each row of ``logits``, all rows taken relative to the top one."""
    values = []
    for z in logits.double():
        top = z.argmax()
        others = z.index_fill(0, top, -math.inf)
        gap, shares = others.logsumexp(0) - z[top], others.softmax(0)
        offsets = weight.double() - weight[top].double()
        mean = shares @ offsets
        inner = shares @ (offsets - mean).square().sum(1) + (-gap).sigmoid() * mean.square().sum()
        values.append(gap.sigmoid() * inner)
    return torch.stack(values)


def plain_trace(logits: Tensor) -> Tensor:
    """``Σ p (1 − p)`` of each row of ``logits``, with ``1 − p`` of the top class summed from the others."""
    p = logits.double().softmax(1)
    top = p.argmax(1, keepdim=True)
    others = p.scatter(1, top, 0.0)
    return (others * (1 - others)).sum(1) + p.gather(1, top).squeeze(1) * others.sum(1)


def power_top_eigenvalue(logits: Tensor, iterations: int = 50) -> Tensor:
    """Largest eigenvalue of ``diag p − ppᵀ`` of each row of ``logits``, for spectra with a gap."""
    p = logits.double().softmax(1)
    top = p.argmax(1, keepdim=True)
    vector = torch.ones_like(p).neg().scatter(1, top, float(p.shape[1]))
    for _ in range(iterations):
        vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        offset = vector - vector.gather(1, top)
        image = p * (offset - (p * offset).sum(1, keepdim=True))
        value = (vector * image).sum(1)
        vector = image / image.abs().amax(1, keepdim=True)
    return value
