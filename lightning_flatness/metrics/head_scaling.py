"""Flatness, loss and confidence of a head multiplied by many numbers, as torchmetrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import plot_curve

from lightning_flatness.functional._checks import check_scales, finite_rows, flatten_leading
from lightning_flatness.functional._numerics import numbers
from lightning_flatness.functional.head_scaling import ScaledHead, scale_head
from lightning_flatness.functional.statistics import SKETCH_BINS, sketch_bins, sketch_quantiles
from lightning_flatness.metrics._configuration import fingerprint

_CALIBRATION_BINS = 15
IGNORED_TARGET = -100
"""What torch takes for a target that does not count."""


class HeadScaling(Metric):
    r"""What happens to flatness, loss and calibration when weight and bias of the head are multiplied by ``s``.

    No decision changes, so that whatever does change says nothing of robustness: with growing ``s`` the confidence goes
    to 1 and relative flatness to 0, its median first; the mean is carried by the few samples near the decision
    boundary, and rises before it falls. States are sums and counts, exact under any batching and on any number of
    processes.

    ``compute`` returns a dictionary of vectors with one entry per scale (``samples`` and ``nonfinite`` are scalars):

    - ``scale``: the factors, as given;
    - ``relative_flatness``, ``relative_flatness_median``: mean, and median within 1 %, of the neuronwise ``κ``;
    - ``loss``: mean cross-entropy in nats;
    - ``confidence``: mean probability of the predicted class;
    - ``calibration_error``: expected calibration error with 15 bins, ``Σ_b n_b/n |accuracy_b − confidence_b|``;
    - ``clean_accuracy``: share of correct predictions, the same for every scale;
    - ``samples``, ``nonfinite``: numbers of samples, and of those left out because of a NaN or infinity; in the weight,
      it is all of them.

    Without samples there are only ``scale``, ``samples`` and ``nonfinite``. Samples with the target −100, which torch's
    cross-entropy ignores, do not count.

    Args:
        scales: factors of weight and bias.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``scales`` are not different positive numbers.

    References:
        Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, for the calibration error. Walter et al.,
        *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231, for the scaling.

    Example:
        >>> metric = HeadScaling([1.0, 10.0])
        >>> features = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> metric.update(features, torch.eye(2), features, target=torch.tensor([1, 1]))
        >>> values = metric.compute()
        >>> [round(number, 3) for number in values["relative_flatness"].tolist()], values["clean_accuracy"].tolist()
        ([1.39, 0.023], [0.5, 0.5])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    bins: Tensor
    sketch: Tensor
    counts: Tensor
    configuration: Tensor

    def __init__(self, scales: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_scales(scales)
        self.scales = tuple(map(float, scales))
        rows = len(self.scales)
        self.add_state("sums", torch.zeros(2, rows, dtype=torch.float64), dist_reduce_fx="sum")
        # Samples, correct ones and confidence in each bin of the confidence.
        bins = torch.zeros(3, rows, _CALIBRATION_BINS, dtype=torch.float64)
        self.add_state("bins", bins, dist_reduce_fx="sum")
        self.add_state("sketch", torch.zeros(rows, SKETCH_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        settings = fingerprint(type(self).__name__, self.scales)
        self.add_state("configuration", settings, dist_reduce_fx="max")

    def update(
        self,
        features: Float[Tensor, "*batch dim"],
        weight: Float[Tensor, "classes dim"],
        logits: Float[Tensor, "*batch classes"],
        target: Int[Tensor, "*batch"],
    ) -> None:
        """Add samples (or tokens: leading dimensions are flattened).

        Args:
            features: inputs of the head.
            weight: weight of the head, not multiplied.
            logits: outputs of the head, not multiplied.
            target: true classes.

        Raises:
            ValueError: if shapes do not fit, or a target is out of range.
        """
        features, logits, classes = flatten_leading(features, logits, target)
        assert classes is not None
        kept = classes != IGNORED_TARGET
        usable = weight.detach().isfinite().all()
        finite = finite_rows(features) & finite_rows(logits) & usable if len(logits) else kept
        rows = kept & finite
        if bool(rows.any()):
            self._add(scale_head(features[rows], weight, logits[rows], classes[rows], self.scales))
        self.counts = self.counts + torch.stack([rows.sum(), (kept & ~finite).sum()]).to(self.counts)

    def _add(self, scaled: ScaledHead) -> None:
        flatness, confidence = scaled.relative_flatness, scaled.confidence
        # Not in place: a state reset in inference mode could not be changed outside.
        self.sums = self.sums + torch.stack([flatness.sum(1), scaled.loss.sum(1)]).to(self.sums)
        place = (confidence * _CALIBRATION_BINS).ceil().long().clamp(1, _CALIBRATION_BINS) - 1
        parts = torch.stack([torch.ones_like(confidence), scaled.correct.to(confidence), confidence])
        self.bins = self.bins.scatter_add(2, place.expand_as(parts), parts.to(self.bins))
        place = sketch_bins(flatness.flatten(), flatness.log().flatten()).view_as(flatness)
        self.sketch = self.sketch.scatter_add(1, place, torch.ones_like(place, dtype=self.sketch.dtype))

    def compute(self) -> dict[str, Tensor]:
        """Return the curves over all samples so far; see the class for the entries."""
        samples, nonfinite = self.counts.long()
        scale = numbers(self.scales, self.sums)
        if not int(samples):
            return {"scale": scale, "samples": samples, "nonfinite": nonfinite}
        counts, correct, confidence = self.bins
        medians = [sketch_quantiles(row, [0.5])[0] for row in self.sketch.long()]
        flatness, loss = self.sums / samples
        return {
            "scale": scale,
            "relative_flatness": flatness,
            "relative_flatness_median": numbers(medians, self.sums),
            "loss": loss,
            "confidence": confidence.sum(1) / samples,
            "calibration_error": (correct - confidence).abs().sum(1) / samples,
            "clean_accuracy": correct.sum(1) / counts.sum(1),
            "samples": samples,
            "nonfinite": nonfinite,
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot relative flatness over the scale, of one result of ``compute`` or of each of a list of them.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = HeadScaling([0.5, 1.0, 2.0])
            >>> metric.update(torch.ones(1, 2), torch.eye(2), torch.ones(1, 2), torch.tensor([0]))
            >>> figure, axes = metric.plot()
        """
        val = self.compute() if val is None else val
        results = [result for result in ([val] if isinstance(val, Mapping) else val) if "relative_flatness" in result]
        curves = tuple([result[name] for result in results] for name in ("scale", "relative_flatness"))
        labels = ("scale", "relative flatness")
        return plot_curve(curves, ax=ax, label_names=labels, legend_name="step", name=type(self).__name__)  # type: ignore[arg-type]
