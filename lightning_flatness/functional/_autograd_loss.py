"""Any other loss, by automatic differentiation in the logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from lightning_flatness.functional._head import Head
from lightning_flatness.functional._logit_loss import HessianProduct, LogitLoss, LossFunction, Traces
from lightning_flatness.functional._numerics import LogScaled, recording, wide


@dataclass(frozen=True, eq=False)
class AutogradLoss(LogitLoss):
    """Any twice differentiable loss, by one Hessian-vector product in the logits per class.

    Reverse mode over reverse mode: torch's forward mode is missing for several losses.

    Args:
        function: maps ``(logits, target)`` to one loss per sample, which must depend on that sample's logits only. The
            logits are float64 (float32 on MPS); a module is moved to their device and dtype.
        ignore_index: samples with this integer target do not count.

    Example:
        >>> from lightning_flatness.functional import feature_hessian_trace
        >>> quartic = AutogradLoss(lambda logits, target: (logits - target).pow(4).sum(1))
        >>> feature_hessian_trace(torch.eye(2), torch.ones(1, 2), torch.zeros(1, 2), loss=quartic)
        tensor([24.], dtype=torch.float64)
    """

    function: LossFunction
    ignore_index: int = -100

    @property
    @override
    def needs_target(self) -> bool:
        return True

    @property
    @override
    def target_is_class(self) -> bool:
        return True

    @override
    def kept(self, target: Tensor | None) -> Bool[Tensor, " batch"] | None:
        if target is None or target.is_floating_point() or target.ndim > 1:
            return None
        return target != self.ignore_index

    @override
    def check_target(self, logits: Tensor, target: Tensor) -> None:
        if target.shape[:1] != logits.shape[:1]:
            raise ValueError(
                f"`target` must hold one entry per sample ({logits.shape[0]}), got shape {tuple(target.shape)}."
            )

    @override
    def traces(self, logits: Float[Tensor, "batch classes"], target: Tensor | None, head: Head) -> Traces:
        product = self.product(wide(logits), target)
        trace = curvature = wide(logits.new_zeros(logits.shape[0]))
        rows = wide(head.rows(slice(None)))
        for k, unit in enumerate(torch.eye(logits.shape[1]).to(trace)):
            column = product(unit.expand(logits.shape))
            trace = trace + column[:, k]
            curvature = curvature + column @ (rows @ rows[k])
        return Traces(LogScaled.of(trace), LogScaled.of(curvature))

    @override
    def product(self, logits: Float[Tensor, "batch classes"], target: Tensor | None) -> HessianProduct:
        assert target is not None
        kept = self.kept(target)
        known = target if kept is None else target.where(kept, 0)
        with recording(logits, known) as (point, labels, keep_graph):
            (gradient,) = torch.autograd.grad(self._per_sample(point, labels).sum(), point, create_graph=True)

        def apply(vectors: Tensor) -> Tensor:
            if not gradient.requires_grad:
                return torch.zeros_like(gradient)
            with torch.inference_mode(mode=False), torch.enable_grad():
                (product,) = torch.autograd.grad(
                    gradient,
                    point,
                    vectors.clone(),
                    retain_graph=True,
                    create_graph=keep_graph,
                    materialize_grads=True,
                )
            return product if kept is None else product * kept.unsqueeze(1)

        return apply

    def _per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        if isinstance(self.function, nn.Module):
            self.function.to(device=logits.device, dtype=logits.dtype)
        loss = self.function(logits, target)
        if loss.shape != logits.shape[:1]:
            raise ValueError(
                f"`loss` must return one value per sample, shape ({logits.shape[0]},), got {tuple(loss.shape)}; "
                'use reduction="none".'
            )
        return loss
