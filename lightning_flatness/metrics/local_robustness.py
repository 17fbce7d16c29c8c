"""What a radius in feature space guarantees in the inputs, as torchmetrics."""

from collections.abc import Mapping, Sequence
from math import isfinite, log
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from lightning_flatness.functional._checks import check_confidence, check_radii, finite_rows
from lightning_flatness.functional._numerics import numbers, wide
from lightning_flatness.functional.bounds import BoundMethod, PerSample, check_guarantees, loss_increase_bound
from lightning_flatness.functional.bounds import decision_radius as decision_radii
from lightning_flatness.functional.statistics import (
    SKETCH_BINS,
    histogram_quantiles,
    sketch_bins,
    sketch_quantiles,
)
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._outcomes import Values, proportion, with_interval
from lightning_flatness.metrics._plotting import drawable

_COUNTS = ("samples", "nonfinite", "finite_input_radii", "loss_below_log2")
_SUMS = ("input_radius", "loss_increase")


class LocalRobustnessBound(Metric):
    r"""How far inputs can move before a linear head's prediction can change, and how much its loss can grow.

    With ``‖φ(x + δ) − φ(x)‖₂ ≤ L‖δ‖``, no perturbation shorter than ``decision_radius / L`` changes the prediction: a
    guarantee where ``L`` is an upper bound on the Lipschitz constant (``certified=True``), an estimate where it is one
    itself. The radii hold whatever loss the model is trained on; ``loss_increase`` and ``…_loss_below_log2`` are about
    the cross-entropy and no other loss. Rounding in the model is not accounted for.

    States are sums and counts, so that the result is exact under any batching and on any number of processes; the
    quantiles come from a mergeable sketch and are within 1 %.

    ``compute`` returns a dictionary of scalars:

    - ``certified_accuracy_{radius}``, or ``estimated_accuracy_{radius}``: share of *all* samples that are classified
      right with ``decision_radius > L radius``, with the ends of its Wilson interval, ``…_low`` and ``…_high``;
    - ``decision_radius_median``, in the units of the features; 0 counts for a sample that is classified wrong;
    - ``certified_radius_mean``, ``…_median`` and ``…_p10``, or ``estimated_radius_…``: of ``decision_radius / L``, in
      the units of the inputs; 0 counts likewise, and it is infinite where ``L`` is 0: the mean leaves such samples out,
      and a quantile that is infinite has no entry;
    - ``loss_increase``: mean bound on the growth of the cross-entropy within ``epsilon``, in nats;
    - ``certified_loss_below_log2``, or ``estimated_…``: share of all samples whose cross-entropy stays below log 2 by
      that bound, so that the true class keeps more than half of the probability;
    - ``lipschitz_certified``, or ``lipschitz_estimated``: the largest ``L``;
    - ``samples``, and ``nonfinite``, the number of those with a NaN or infinity, for which nothing is guaranteed: their
      radius is 0, and only the mean of the loss leaves them out.

    A value that cannot be had has no entry.

    Args:
        radii: lengths of perturbations, in the units and the norm of ``L``; a mapping gives each a name for its key.
        epsilon: the length for which the growth of the loss is bounded.
        method: of :func:`~lightning_flatness.functional.loss_increase_bound`: ``"bennett"``, ``"trace"`` or
            ``"refined"``.
        certified: whether every ``L`` is an upper bound.
        confidence: of the intervals.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> metric = LocalRobustnessBound([0.1, 0.5], epsilon=0.1, certified=True)
        >>> logits = torch.tensor([[2.0, 0.0], [4.0, 0.0]])
        >>> metric.update(logits, torch.tensor([0, 0]), torch.eye(2), lipschitz=4.0)
        >>> values = metric.compute()
        >>> print(f"{values['certified_accuracy_0.1']:.2f} {values['certified_accuracy_0.5']:.2f}")
        1.00 0.50
        >>> print(f"{values['certified_radius_mean']:.4f} {values['loss_increase']:.4f}")
        0.5303 0.0502
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    counts: Tensor
    standing: Tensor
    sums: Tensor
    sketch: Tensor
    lipschitz: Tensor
    configuration: Tensor

    def __init__(
        self,
        radii: Sequence[float] | Mapping[str, float],
        epsilon: float,
        *,
        method: BoundMethod = "bennett",
        certified: bool = False,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.radii = _named(radii)
        if not (isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"`epsilon` must be > 0 and finite, got {epsilon}.")
        check_guarantees(method)
        check_confidence(confidence)
        self.epsilon = epsilon
        self.method = method
        self.certified = certified
        self.confidence = confidence
        for name, length in (("counts", len(_COUNTS)), ("standing", len(self.radii))):
            self.add_state(name, torch.zeros(length, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(len(_SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        # One row for the radii in feature space, one for those in the inputs.
        self.add_state("sketch", torch.zeros(2, SKETCH_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("lipschitz", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")
        settings = fingerprint(type(self).__name__, self.radii, epsilon, method, certified, confidence)
        self.add_state("configuration", settings, dist_reduce_fx="max")

    def update(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int[Tensor, " batch"],
        weight: Float[Tensor, "classes dim"],
        lipschitz: PerSample,
    ) -> None:
        """Add a batch.

        Args:
            logits: output of the head, before any softmax.
            target: class indices.
            weight: weight of the head.
            lipschitz: Lipschitz constant ``L`` of the features as a function of the inputs, around each sample or for
                all of them, in the norm and units of the radii.

        Raises:
            ValueError: if shapes do not fit, a target is not a class or a Lipschitz constant is negative.
        """
        constant = numbers(lipschitz, logits).detach()
        if constant.shape not in {(), logits.shape[:1]}:
            raise ValueError(
                f"`lipschitz` must be a number or hold one per sample ({len(logits)}), "
                f"got shape {tuple(constant.shape)}."
            )
        if bool((constant < 0).any()):
            raise ValueError(f"`lipschitz` must be >= 0, got {float(constant.min()):g}.")
        if not len(logits):
            return
        finite = finite_rows(logits.detach()) & constant.isfinite() & weight.detach().isfinite().all()
        constant = torch.where(finite, constant, 0.0)
        # Rows of zeros have the radius 0.
        logits = torch.where(finite.unsqueeze(1), logits.detach(), 0.0)
        weight = weight.detach().nan_to_num(0.0, 0.0, 0.0)
        radius = decision_radii(logits, target, weight)
        increase = loss_increase_bound(logits, target, weight, constant * self.epsilon, method=self.method)
        loss = cross_entropy(wide(logits), target.long(), reduction="none")
        self._add(finite, radius, constant, increase, finite & (loss + increase < log(2)))

    def _add(
        self,
        finite: Bool[Tensor, " batch"],
        radius: Float[Tensor, " batch"],
        constant: Float[Tensor, " batch"],
        increase: Float[Tensor, " batch"],
        below: Bool[Tensor, " batch"],
    ) -> None:
        input_radius = torch.where(radius > 0, radius / constant, 0.0)
        is_length = input_radius.isfinite()
        masks = (torch.ones_like(finite), ~finite, is_length, below)
        lengths = numbers(list(self.radii.values()), radius)
        sums = [torch.where(is_length, input_radius, 0.0).sum(), torch.where(finite, increase, 0.0).sum()]
        # Not in place: a state reset in inference mode could not be changed outside.
        self.counts = self.counts + torch.stack(masks).sum(1).to(self.counts)
        self.standing = self.standing + (radius > lengths.unsqueeze(1) * constant).sum(1).to(self.standing)
        self.sums = self.sums + torch.stack(sums).to(self.sums)
        self.lipschitz = torch.maximum(self.lipschitz, constant.amax().to(self.lipschitz))
        place = torch.cat([sketch_bins(radius, radius.log()), SKETCH_BINS + sketch_bins(radius, input_radius.log())])
        one = torch.ones_like(place, dtype=self.sketch.dtype)
        self.sketch = self.sketch.view(-1).index_add(0, place, one).view_as(self.sketch)

    def compute(self) -> dict[str, Tensor]:
        """Return the values over all samples so far; see the class for the entries."""
        counts = dict(zip(_COUNTS, self.counts.long().unbind(), strict=True))
        samples = counts["samples"]
        kind = "certified" if self.certified else "estimated"
        values: Values = {}
        if samples:
            for name, standing in zip(self.radii, self.standing.long(), strict=True):
                values |= with_interval(f"{kind}_accuracy_{name}", standing, samples, self.confidence)
            values |= self._radii(kind) | {f"lipschitz_{kind}": self.lipschitz}
        radius_sum, increase_sum = self.sums
        values |= proportion(f"{kind}_radius_mean", radius_sum, counts["finite_input_radii"])
        values |= proportion("loss_increase", increase_sum, samples - counts["nonfinite"])
        values |= proportion(f"{kind}_loss_below_log2", counts["loss_below_log2"], samples)
        return values | {"samples": samples, "nonfinite": counts["nonfinite"]}

    def _radii(self, kind: str) -> Values:
        values: Values = {}
        quantiles = {"decision_radius": {"median": 0.5}, f"{kind}_radius": {"median": 0.5, "p10": 0.1}}
        for (name, probabilities), counts in zip(quantiles.items(), self.sketch.long(), strict=True):
            shares = list(probabilities.values())
            places, radii = histogram_quantiles(counts, shares).tolist(), sketch_quantiles(counts, shares)
            for end, place, radius in zip(probabilities, places, radii, strict=True):
                if place < SKETCH_BINS - 1:  # the last bin holds what is infinite
                    values[f"{name}_{end}"] = self.sums.new_tensor(radius)
        return values

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the accuracies of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = LocalRobustnessBound([0.1], epsilon=0.1)
            >>> metric.update(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.eye(2), lipschitz=1.0)
            >>> figure, axes = metric.plot()
        """
        kind = "certified" if self.certified else "estimated"
        names = [f"{kind}_accuracy_{name}" for name in self.radii]
        return self._plot(drawable(self.compute() if val is None else val, names), ax)


def _named(radii: Sequence[float] | Mapping[str, float]) -> dict[str, float]:
    """Name of each radius, for its key."""
    values = list(radii.values()) if isinstance(radii, Mapping) else list(radii)
    check_radii(values)
    names = list(radii) if isinstance(radii, Mapping) else [f"{radius:g}" for radius in values]
    if len(set(names)) < len(names):
        raise ValueError(f"`radii` must differ in their first 6 digits, which are in the keys, got {values}.")
    return dict(zip(names, values, strict=True))
