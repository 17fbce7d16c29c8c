"""Whether bounds on the growth of the loss hold where attacks have moved the features, as torchmetrics."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from lightning_flatness.functional._checks import finite_rows
from lightning_flatness.functional._numerics import sq_norm, wide
from lightning_flatness.functional.bounds import (
    BoundMethod,
    check_cubic_constant,
    check_guarantees,
    loss_increase_bound,
)
from lightning_flatness.functional.loss_change import loss_change
from lightning_flatness.functional.statistics import SKETCH_BINS, sketch_bins, sketch_quantiles
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._outcomes import Values, proportion
from lightning_flatness.metrics._plotting import drawable

_COUNTS = ("moved", "violations", "taylor_violations", "limited", "too_far")
_ROUNDINGS = 16
"""Rounding errors of the features that their displacement may be off by."""
_TELLING_INCREASE = 1e-3
"""Nats from which on the ratio of bound and increase is looked at."""


class LossBoundCheck(Metric):
    r"""How often the loss has grown more than a bound on its growth allows, and how far the bound was above it.

    Features that an attack has moved by ``u`` change the cross-entropy by ``log Σ_j p_j e^{(w_j − w_y)·u}``, which is
    compared with :func:`~lightning_flatness.functional.loss_increase_bound` for the radius ``‖u‖``. Nothing of the
    inputs and no Lipschitz constant is involved in that; ``reach`` checks a Lipschitz constant by itself.

    States are counts, exact under any batching and on any number of processes. ``compute`` returns a dictionary of
    scalars, of the samples whose features have moved at all:

    - ``violation_rate``: share whose loss grew by more than the bound; 0, since the bound holds for every sample. What
      a difference may be due to rounding, about 1e-8 both of the bound and in nats (3e-4 on MPS), does not count;
    - ``taylor_violation_rate``: the same for ``method="taylor"``: above 0 where that formula's assumption, a local
      minimum of the loss, fails;
    - ``lipschitz_violation_rate``: share, among those with a ``reach``, whose features moved farther than that: 0 for
      a certificate, or it is none;
    - ``tightness``: median, within 1 %, of ``bound / increase`` where the loss grew by more than 0.001 nats.

    A value that cannot be had has no entry. Samples with a NaN or infinity are left out.

    Args:
        method: of :func:`~lightning_flatness.functional.loss_increase_bound`: ``"bennett"``, ``"trace"`` or
            ``"refined"``.
        cubic_constant: of the Taylor bound; by default the reported one, 0 for its part with the flatness alone.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if the method is unknown or gives no bound, or the constant is negative.

    Example:
        >>> metric = LossBoundCheck()
        >>> features = torch.tensor([[8.0, 0.0], [8.0, 0.0]])
        >>> moved = features + torch.tensor([[-2.0, 2.0], [-4.0, 0.0]])
        >>> metric.update(features, torch.tensor([0, 0]), torch.eye(2), features, moved)
        >>> values = metric.compute()
        >>> print(f"{values['violation_rate']:.2f} {values['tightness']:.1f}")
        0.00 1.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    counts: Tensor
    sketch: Tensor
    configuration: Tensor

    def __init__(self, method: BoundMethod = "bennett", *, cubic_constant: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_guarantees(method)
        check_cubic_constant(cubic_constant)
        self.method = method
        self.cubic_constant = cubic_constant
        self.add_state("counts", torch.zeros(len(_COUNTS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sketch", torch.zeros(SKETCH_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("configuration", fingerprint(type(self).__name__, method, cubic_constant), dist_reduce_fx="max")

    def update(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        weight: Float[Tensor, "classes dim"],
        features: Float[Tensor, "batch dim"],
        features_adv: Float[Tensor, "batch dim"],
        reach: Float[Tensor, " batch"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            logits: output of the head for the clean inputs, before any softmax.
            target: class indices.
            weight: weight of the head.
            features: inputs of the head for the clean inputs.
            features_adv: inputs of the head for the attacked ones.
            reach: how far a Lipschitz constant lets the features move, ``L‖x' − x‖``; NaN where there is none.

        Raises:
            ValueError: if shapes do not fit or a target is not a class.
        """
        if features_adv.shape != features.shape:
            raise ValueError(
                f"`features_adv` must have the shape of `features`, {tuple(features.shape)}, "
                f"got {tuple(features_adv.shape)}."
            )
        if not len(logits):
            return
        shift = wide(features_adv.detach()) - wide(features.detach())
        usable = finite_rows(logits.detach()) & finite_rows(shift) & weight.detach().isfinite().all()
        # Rows of zeros have not moved.
        shift = torch.where(usable.unsqueeze(1), shift, 0.0)
        logits = torch.where(usable.unsqueeze(1), logits.detach(), 0.0)
        weight = weight.detach().nan_to_num(0.0, 0.0, 0.0)
        length = torch.linalg.vector_norm(shift, dim=1)
        change = loss_change(logits, target, weight, shift)
        bound = loss_increase_bound(logits, target, weight, length, method=self.method)
        norm = sq_norm(torch.where(usable.unsqueeze(1), features.detach(), 1.0)).sqrt()
        norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
        taylor = loss_increase_bound(
            logits, target, weight, length, method="taylor", feature_norm=norm, cubic_constant=self.cubic_constant
        )
        limit = torch.full_like(length, torch.nan) if reach is None else reach.to(length)
        noise = _ROUNDINGS * torch.finfo(features.dtype).eps * norm
        self._add(length > 0, change, bound, taylor, limit.isfinite(), _exceeds(length, limit + noise))

    def _add(
        self,
        moved: Bool[Tensor, " batch"],
        change: Tensor,
        bound: Tensor,
        taylor: Tensor,
        limited: Bool[Tensor, " batch"],
        too_far: Bool[Tensor, " batch"],
    ) -> None:
        broken = (_exceeds(change, bound), _exceeds(change, taylor), limited, limited & too_far)
        masks = (moved, *(moved & part for part in broken))
        telling = moved & (change > _TELLING_INCREASE)
        # Not in place: a state reset in inference mode could not be changed outside.
        self.counts = self.counts + torch.stack(masks).sum(1).to(self.counts)
        place = sketch_bins(bound, bound.log() - torch.where(telling, change, 1.0).log())
        self.sketch = self.sketch.index_add(0, place, telling.to(self.sketch))

    def compute(self) -> dict[str, Tensor]:
        """Return the rates over all samples so far; see the class for the entries."""
        moved, violations, taylor_violations, limited, too_far = self.counts.long()
        values: Values = {
            **proportion("violation_rate", violations, moved),
            **proportion("taylor_violation_rate", taylor_violations, moved),
            **proportion("lipschitz_violation_rate", too_far, limited),
        }
        sketch = self.sketch.long()
        if bool(sketch.any()):
            (ratio,) = sketch_quantiles(sketch, [0.5])
            values["tightness"] = wide(sketch.new_zeros(1)).new_tensor(ratio)
        return values

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the rates of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = LossBoundCheck()
            >>> metric.update(torch.zeros(1, 2), torch.tensor([0]), torch.eye(2), torch.zeros(1, 2), torch.ones(1, 2))
            >>> figure, axes = metric.plot()
        """
        names = ("violation_rate", "taylor_violation_rate")
        return self._plot(drawable(self.compute() if val is None else val, names), ax)


def _exceeds(change: Float[Tensor, " batch"], bound: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Whether a change is above its bound by more than rounding."""
    slack: float = torch.finfo(change.dtype).eps ** 0.5
    return change > bound * (1 + slack) + slack
