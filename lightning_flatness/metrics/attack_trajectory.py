"""What happens to many samples along a path through input space, as torchmetrics."""

from collections.abc import Sequence
from math import inf, log
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from lightning_flatness.functional._numerics import wide
from lightning_flatness.functional.statistics import (
    COARSE_SKETCH_BINS,
    SKETCH_BINS,
    sketch_bins,
    sketch_quantiles,
)
from lightning_flatness.functional.trajectory import TrajectoryPoints
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._outcomes import Values, proportion
from lightning_flatness.metrics._plotting import drawable

FLATNESS_QUANTITIES = ("neuronwise", "layerwise", "maxeig")
"""Variants of relative flatness."""
QUANTITIES = (
    *FLATNESS_QUANTITIES,
    "loss",
    "confidence",
    "margin",
    "feature_norm",
    "feature_distance",
    "input_distance",
)
"""Quantities with a distribution at every point."""
_QUANTILES = {"median": 0.5, "p10": 0.1, "p90": 0.9}
_COUNTS = ("samples", "fooled", "in_valley", "censored", "nonfinite")


class AttackTrajectory(Metric):
    r"""Flatness, loss and confidence at every point of a path, over many samples; small flatness is flat.

    States are sums and counts, so that the result is exact under any batching and on any number of processes; the
    quantiles come from mergeable sketches: those of the curves are within 5 % (for the confidence p, 5 % of 1 − p), the
    median of the basin's width within 1 %. Memory grows with the number of points, not with that of samples: 0.3 MiB
    per point.

    ``compute`` returns a dictionary of scalars:

    - ``clean_flatness``, ``peak_flatness``, ``final_flatness``: mean neuronwise κ at the first point, the largest over
      the points, and at the last one; ``peak_step`` is the position of the largest;
    - ``success_rate``: share of the samples that are fooled at the last point;
    - ``valley_rate``: share of those fooled samples that are flatter there than at their clean input, and classified
      with a confidence above ``confidence``;
    - ``basin_width``: median length of the perturbation at which the loss has risen by ``loss_rise``, interpolated
      between points; ``basin_censored_rate`` is the share of samples whose loss never rises by so much: they count as
      wider than any other, and where they are more than half of all, there is no ``basin_width``;
    - ``samples``, and ``nonfinite``, the number of samples left out because a loss or feature was NaN or infinite.

    A value that cannot be had has no entry. ``curves`` then holds lists with one number per point: ``position``,
    ``flipped``, the share that is misclassified, and ``{quantity}_mean``, ``_median``, ``_p10`` and ``_p90`` of every
    quantity in :class:`~lightning_flatness.functional.trajectory.TrajectoryPoints`.

    Args:
        positions: of the points: steps, levels or severities.
        loss_rise: rise of the cross-entropy, in nats, that ends the basin.
        confidence: above which a fooled sample can be in the valley.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if there are fewer than two positions, or ``loss_rise`` or ``confidence`` is out of range.

    Example:
        >>> flatness = torch.tensor([[1.0], [9.0], [0.5]], dtype=torch.float64)
        >>> rows = dict.fromkeys(TrajectoryPoints._fields, flatness) | {"log_neuronwise": flatness.log()}
        >>> rows |= {"confidence": flatness.clamp(max=0.95).flip(0), "flipped": flatness == 0.5, "loss": rows["loss"]}
        >>> metric = AttackTrajectory([0.0, 1.0, 2.0])
        >>> metric.update(TrajectoryPoints(**rows))
        >>> values = metric.compute()
        >>> print(f"{values['peak_flatness']:.1f} {values['peak_step']:.0f} {values['valley_rate']:.0f}")
        9.0 1 1
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound: float | None = 0.0

    sums: Tensor
    valid: Tensor
    sketch: Tensor
    basin: Tensor
    counts: Tensor
    configuration: Tensor

    def __init__(
        self, positions: Sequence[float], loss_rise: float = log(2), confidence: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if len(positions) < 2:
            raise ValueError(f"`positions` must hold the clean input and at least one more, got {list(positions)}.")
        if not 0 < loss_rise < inf:
            raise ValueError(f"`loss_rise` must be > 0 and finite, got {loss_rise}.")
        if not 0 <= confidence < 1:
            raise ValueError(f"`confidence` must be in [0, 1), got {confidence}.")
        self.positions = tuple(map(float, positions))
        self.loss_rise = loss_rise
        self.confidence = confidence
        self.curves: dict[str, list[float]] = {}
        size, points = len(QUANTITIES), len(positions)
        self.add_state("sums", torch.zeros(size + 1, points, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("valid", torch.zeros(size + 1, points, dtype=torch.int64), dist_reduce_fx="sum")
        sketch = torch.zeros(size, points, COARSE_SKETCH_BINS, dtype=torch.int32)
        self.add_state("sketch", sketch, dist_reduce_fx="sum")
        self.add_state("basin", torch.zeros(SKETCH_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(_COUNTS), dtype=torch.int64), dist_reduce_fx="sum")
        settings = fingerprint(type(self).__name__, self.positions, loss_rise, confidence)
        self.add_state("configuration", settings, dist_reduce_fx="max")

    def update(self, points: TrajectoryPoints) -> None:
        """Add samples; does not wait for the device.

        Args:
            points: of samples that are classified right at the first point.

        Raises:
            ValueError: if there are not as many points as positions.
        """
        if len(points.loss) != len(self.positions):
            raise ValueError(f"`points` must hold {len(self.positions)} points, got {len(points.loss)}.")
        kept = (points.loss.isfinite() & points.feature_distance.isfinite()).all(0)
        self._add_points(points, kept)
        width, is_censored = basin_width(points.loss, points.input_distance, self.loss_rise)
        width = torch.where(is_censored, inf, width)
        place = sketch_bins(width, width.log())
        # Not in place: a state reset in inference mode could not be changed outside.
        self.basin = self.basin.index_add(0, place, kept.to(self.basin))
        fooled = kept & points.flipped[-1]
        flatter = points.log_neuronwise[-1] < points.log_neuronwise[0]
        masks = [kept, fooled, fooled & flatter & (points.confidence[-1] > self.confidence), kept & is_censored, ~kept]
        self.counts = self.counts + torch.stack(masks).sum(1).to(self.counts)

    def _add_points(self, points: TrajectoryPoints, kept: Bool[Tensor, " batch"]) -> None:
        logs = torch.stack([getattr(points, f"log_{name}") for name in FLATNESS_QUANTITIES])
        values = torch.stack([wide(getattr(points, name)) for name in QUANTITIES[len(FLATNESS_QUANTITIES) :]])
        # The sketch is fine near 0, and probabilities are to be told apart near 1.
        spread = values.clone()
        spread[QUANTITIES.index("confidence") - len(logs)] = 1 - points.confidence
        means = torch.cat([logs.exp(), values, wide(points.flipped).unsqueeze(0)])
        valid = means.isfinite() & kept
        self.sums = self.sums + torch.where(valid, means, 0).sum(2).to(self.sums)
        self.valid = self.valid + valid.sum(2).to(self.valid)
        sizes = torch.cat([logs, spread.abs().log()])
        bins = sketch_bins(torch.cat([torch.ones_like(logs), spread]), sizes, COARSE_SKETCH_BINS)
        rows = torch.arange(bins.shape[0] * bins.shape[1], device=bins.device).view(*bins.shape[:2], 1)
        place = (rows * COARSE_SKETCH_BINS + bins).flatten()
        added = valid[:-1].flatten().to(self.sketch)
        self.sketch = self.sketch.view(-1).index_add(0, place, added).view_as(self.sketch)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars over all samples so far, see the class for the entries, and set ``curves``."""
        samples, fooled, in_valley, censored, nonfinite = self.counts.long().unbind()
        values: Values = {"samples": samples, "nonfinite": nonfinite}
        self.curves = self._curves() if bool((self.valid > 0).all()) else {}
        if self.curves:
            flatness = self.curves["neuronwise_mean"]
            peak = max(range(len(flatness)), key=flatness.__getitem__)
            numbers = {"clean": flatness[0], "peak": flatness[peak], "final": flatness[-1]}
            values |= {f"{name}_flatness": self.sums.new_tensor(value) for name, value in numbers.items()}
            values["peak_step"] = self.sums.new_tensor(self.positions[peak])
        values |= proportion("success_rate", fooled, samples)
        values |= proportion("valley_rate", in_valley, fooled)
        values |= proportion("basin_censored_rate", censored, samples)
        if samples and 2 * censored <= samples:
            values["basin_width"] = self.sums.new_tensor(sketch_quantiles(self.basin.long(), [0.5])[0])
        return values

    def _curves(self) -> dict[str, list[float]]:
        means = dict(zip((*QUANTITIES, "flipped"), (self.sums / self.valid).tolist(), strict=True))
        curves = {"position": list(self.positions), "flipped": means.pop("flipped")}
        sketches = self.sketch.long().cpu()
        for name, mean, points in zip(means, means.values(), sketches, strict=True):
            levels = _QUANTILES.values()
            flips = name == "confidence"
            found = [sketch_quantiles(counts, [1 - q if flips else q for q in levels]) for counts in points]
            columns = zip(*found, strict=True)
            curves[f"{name}_mean"] = mean
            for suffix, column in zip(_QUANTILES, columns, strict=True):
                curves[f"{name}_{suffix}"] = [1 - value for value in column] if flips else list(column)
        return curves

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.curves = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the flatness of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = AttackTrajectory([0.0, 1.0])
            >>> rows = dict.fromkeys(TrajectoryPoints._fields, torch.ones(2, 1, dtype=torch.float64))
            >>> metric.update(TrajectoryPoints(**rows | {"flipped": torch.ones(2, 1, dtype=torch.bool)}))
            >>> figure, axes = metric.plot()
        """
        names = ("clean_flatness", "peak_flatness", "final_flatness")
        return self._plot(drawable(self.compute() if val is None else val, names), ax)


def basin_width(
    loss: Float[Tensor, "points batch"], distance: Float[Tensor, "points batch"], loss_rise: float
) -> tuple[Float[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Length of the perturbation at which the loss has risen for the first time, interpolated between points.

    Args:
        loss: at each point, the clean input first.
        distance: of each point from the clean input.
        loss_rise: what counts as risen, in nats.

    Returns:
        Lengths, those of the last point where the loss never rises by so much, and whether it never does.

    Example:
        >>> distance = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        >>> basin_width(torch.tensor([[0.0, 0.0], [0.5, 0.1], [1.5, 0.2]]), distance, 1.0)
        (tensor([1.5000, 2.0000]), tensor([False,  True]))
    """
    rise = loss - loss[0]
    reached = rise >= loss_rise
    is_censored = ~reached.any(0)
    # The first point has not risen: there is one before.
    after = reached.byte().argmax(0).clamp(min=1).unsqueeze(0)
    low, high = (rise.gather(0, place) for place in (after - 1, after))
    near, far = (distance.gather(0, place) for place in (after - 1, after))
    crossing = near + (far - near) * (loss_rise - low) / (high - low)
    return torch.where(is_censored, distance[-1], crossing.squeeze(0)), is_censored
