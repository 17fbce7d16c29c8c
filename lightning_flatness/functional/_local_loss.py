r"""Cross-entropy of a sample around its own features: what every bound on it is made of.

With ``a_j = w_j − w_y`` and ``p = softmax(z)``, features moved by ``u`` change the loss by

``ℓ(φ + u) − ℓ(φ) = log(1 + S(u))``, ``S(u) = Σ_{j≠y} p_j (e^{a_j·u} − 1)``.

``S``, not ``1 + S``, is evaluated throughout, and in logarithms, so that neither small nor large radii lose digits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_flatness.functional._numerics import wide
from lightning_flatness.functional._row_offsets import RowOffsets

FEW_CLASSES = 16
"""Classes whose directions are told apart by default; of all others only the lengths count."""


class LeadingClasses(NamedTuple):
    """The classes that matter most within a radius ``ρ``."""

    classes: Int[Tensor, "batch leading"]
    log_prob: Float[Tensor, "batch leading"]
    cosines: Float[Tensor, "batch leading leading"]  # of the angles between the a_j, 0 where one vanishes
    reach: Float[Tensor, "batch leading"]  # R_j = ρ ‖a_j‖, the largest a_j·u
    log_rest: Float[Tensor, " batch"]  # log Σ p_j (e^{R_j} − 1 − R_j) of the other classes

    @property
    def gram(self) -> Float[Tensor, "batch leading leading"]:
        """``ρ² ⟨a_j, a_k⟩``."""
        return self.reach.unsqueeze(2) * self.cosines * self.reach.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """What does not depend on the radius."""

    offsets: RowOffsets
    target: Int[Tensor, " batch"]
    log_prob: Float[Tensor, "batch classes"]  # -inf for the true class
    lengths: Float[Tensor, "batch classes"]  # ‖a_j‖
    log_gradient_norm: Float[Tensor, " batch"]  # log ‖Σ p_j a_j‖

    @classmethod
    def of(
        cls, logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], offsets: RowOffsets
    ) -> "LocalLoss":
        """Evaluate it from the output of the head."""
        logits = wide(logits)
        true_class = target.unsqueeze(1)
        others = logits.scatter(1, true_class, -torch.inf)
        log_others = others.logsumexp(1, keepdim=True)
        true_logit = logits.gather(1, true_class)
        log_wrong = logsigmoid(log_others - true_logit).squeeze(1)
        return cls(
            offsets=offsets,
            target=target,
            log_prob=others - torch.logaddexp(log_others, true_logit),
            lengths=offsets.lengths(target),
            log_gradient_norm=log_wrong + offsets.mean_length((others - log_others).exp(), target).log(),
        )

    def rows(self, index: Int[Tensor, " rows"]) -> "LocalLoss":
        """Keep some samples."""
        parts = (self.target, self.log_prob, self.lengths, self.log_gradient_norm)
        return LocalLoss(self.offsets, *(part[index] for part in parts))

    def leading(self, radius: Float[Tensor, " batch"], count: int = FEW_CLASSES) -> LeadingClasses:
        """Pick the ``count`` classes with the largest ``p_j (e^{R_j} − 1 − R_j)``; all where there are few."""
        others = self.log_prob.shape[1] - 1
        if others <= FEW_CLASSES:
            classes, gram = (table[self.target] for table in self.offsets.all_pairs)
            log_rest = torch.full_like(radius, -torch.inf)
        else:
            weights = self.log_prob + log_excess(radius.unsqueeze(1) * self.lengths)
            classes = weights.topk(min(count, others), dim=1).indices
            gram = self.offsets.gram(self.target, classes)
            log_rest = weights.scatter(1, classes, -torch.inf).logsumexp(1)
        lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
        cosines = (gram / lengths.unsqueeze(2) / lengths.unsqueeze(1)).nan_to_num()
        reach = radius.unsqueeze(1) * lengths
        return LeadingClasses(classes, self.log_prob.gather(1, classes), cosines, reach, log_rest)


def log_psi(x: Tensor) -> Tensor:
    """``log ψ(x)`` with ``ψ(x) = (e^x − 1 − x) / x²``, ``ψ(0) = 1/2``, for ``x ≥ 0``."""
    series = 0.5 + x / 6 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))
    closed = x + (-torch.expm1(-x) - x * torch.exp(-x)).log() - 2 * x.log()
    return torch.where(x < 0.01, series.log(), closed)


def log_excess(x: Tensor) -> Tensor:
    """``log(e^x − 1 − x)`` for ``x ≥ 0``; -inf at 0."""
    return log_psi(x) + 2 * x.log()


def log_expm1(x: Tensor) -> Tensor:
    """``log(e^x − 1)`` for ``x ≥ 0``; -inf at 0."""
    return x + (-torch.expm1(-x)).log()
