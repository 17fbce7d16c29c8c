"""Relative flatness as torchmetrics: sums over the functional core."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_flatness.functional._checks import (
    FlatnessVariant,
    check_num_classes,
    check_target,
    check_variant,
    finite_rows,
    flatten_leading,
)
from lightning_flatness.functional._numerics import LogScaled
from lightning_flatness.functional.flatness import (
    FlatnessFactors,
    flatness_factors,
    unchecked_relative_flatness,
)
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss
from lightning_flatness.functional.statistics import (
    SKETCH_BINS,
    sketch_bins,
    sketch_histogram,
    sketch_log10_range,
    sketch_quantiles,
)
from lightning_flatness.metrics._answers import Answers, sums_by_class
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._plotting import drawable

_SUMS = (
    "relative_flatness",
    "log_relative_flatness",
    "layerwise",
    "confidence_factor",
    "geometry_factor",
    "feature_norm",
    "weight_norm",
    "correct",
    "wrong",
)
_MEANS = ("relative_flatness", "layerwise", "confidence_factor", "feature_norm", "weight_norm")
_COUNTS = ("samples", "positive", "negative", "correct", "wrong", "geometry_factor", "nonfinite", "out_of_range")
_PARTS = ("correct", "wrong", "geometry_factor")
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
_PLOTTED = ("relative_flatness", "geometric_mean", *_QUANTILES, "correct", "wrong")
"""Entries in the unit of ``κ``."""


class Histogram(NamedTuple):
    """Counts of ``log10 κ`` in equal bins.

    Args:
        counts: number of samples in each bin.
        edges: of the bins, one more than counts.
    """

    counts: list[int]
    edges: list[float]


class RelativeFlatness(Metric):
    r"""Distribution of the samples' relative flatness ``κ``, with the factors it is made of; small is flat.

    States are sums and counts, so that the result is exact under any batching and on any number of processes; the
    quantiles come from a mergeable sketch and are within 1 % (between e^-256 and e^128).

    ``compute`` returns a dictionary of scalars:

    - ``relative_flatness``: mean of ``κ``, which is the ``κ`` of the mean loss (not for ``variant="maxeig"``);
    - ``geometric_mean``, ``median``, ``p90``, ``p99`` of ``κ``; the geometric mean is over the samples with ``κ > 0``;
    - ``layerwise``: mean of ``‖W‖_F² ‖φ‖² tr H_z``;
    - ``confidence_factor``, ``feature_norm``, ``weight_norm``: means of ``tr H_z``, ``‖φ‖`` and ``‖W‖_F``;
    - ``geometry_factor``: mean of ``tr(Wᵀ H_z W) / tr H_z``, what is left of the curvature without the confidence: how
      far apart the head's rows are of the classes that a sample is torn between; over the samples with ``tr H_z ≠ 0``;
    - ``correct``, ``wrong``: mean of ``κ`` over correctly and over wrongly classified samples, given class targets;
    - ``nonfinite``: number of samples left out because a feature, logit or weight was NaN or infinite.

    A value that cannot be had (``wrong`` where no sample is wrong) has no entry. After ``compute``, ``per_class`` holds
    ``relative_flatness``, the mean ``κ`` of the samples of each class, NaN where there is none, and ``samples``, their
    numbers; it is empty without ``num_classes``.

    Args:
        variant: ``"neuronwise"``, ``"layerwise"`` or ``"maxeig"``, see
            :func:`~lightning_flatness.functional.relative_flatness`.
        loss: the training loss: a name, a torch loss module, a
            :class:`~lightning_flatness.functional.losses.LogitLoss` or a function.
        include_bias: count the head's bias among its parameters; ``update`` then needs it.
        num_classes: number of classes, for means per class; ``update`` then needs a ``target`` of classes.
        validate_args: check the values of targets in ``update``, which waits for the device; if False, targets out of
            range are reported by ``compute``.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if the variant or the loss is unknown, or ``num_classes`` < 1.

    Example:
        >>> metric = RelativeFlatness()
        >>> features = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> metric.update(features, weight, features @ weight.T, target=torch.tensor([1, 1]))
        >>> values = metric.compute()
        >>> print(f"{values['relative_flatness']:.4f} {values['correct']:.4f} {values['wrong']:.4f}")
        1.3896 1.9661 0.8132
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound: float | None = 0.0

    sums: Tensor
    counts: Tensor
    sketch: Tensor
    classes: Tensor
    configuration: Tensor

    def __init__(
        self,
        variant: FlatnessVariant = "neuronwise",
        loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
        *,
        include_bias: bool = False,
        num_classes: int | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.variant = check_variant(variant)
        self.loss = resolve_loss(loss)
        self.include_bias = include_bias
        self.validate_args = validate_args
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.histograms: dict[str, Histogram] = {}
        self.per_class: dict[str, Tensor] = {}
        classes = torch.zeros(2, num_classes or 0, dtype=torch.float64)
        self.add_state("classes", classes, dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(len(_SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(_COUNTS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sketch", torch.zeros(2, SKETCH_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state(
            "configuration", fingerprint(variant, self.loss, include_bias, num_classes), dist_reduce_fx="max"
        )

    @torch.no_grad()  # `forward` would give the batch's result a graph
    def update(
        self,
        features: Float[Tensor, "*batch dim"],
        weight: Float[Tensor, "classes dim"],
        logits: Float[Tensor, "*batch classes"],
        target: Shaped[Tensor, "*batch"] | Shaped[Tensor, "*batch classes"] | None = None,
        bias: Float[Tensor, " classes"] | None = None,
    ) -> None:
        """Add samples (or tokens: leading dimensions are flattened).

        Args:
            features: inputs of the head.
            weight: weight of the head.
            logits: outputs of the head, before any softmax.
            target: what the loss is given; splits the samples into correct and wrong where it holds classes.
            bias: bias of the head, used with ``include_bias``.

        Raises:
            ValueError: if shapes do not fit, a target or the bias is missing, or a target is out of range.
        """
        if self.include_bias and bias is None:
            raise ValueError("`bias` must be given with include_bias=True, got None.")
        features, logits, target = flatten_leading(features, logits, target)
        if len(logits) == 0:
            return
        target = check_target(self.loss, logits, target, values=self.validate_args)
        bias = bias if self.include_bias else None
        factors = flatness_factors(features, weight, logits, target, loss=self.loss, bias=bias)
        if self.variant == "maxeig":
            flatness = unchecked_relative_flatness(features, weight, logits, target, "maxeig", self.loss, bias)
        else:
            flatness = factors.neuronwise() if self.variant == "neuronwise" else factors.layerwise()
        kept, answers = self._kept(logits, target), Answers.of(self.loss, logits, target)
        valid = kept & finite_rows(features) & finite_rows(logits) & flatness.linear().isfinite()
        self._add(flatness, factors, kept, valid, answers)
        if self.num_classes is not None:
            sums = sums_by_class(flatness.linear(), valid, logits, target, self.num_classes)
            self.classes = self.classes + sums.to(self.classes)

    def _kept(self, logits: Tensor, target: Tensor | None) -> Bool[Tensor, " batch"]:
        kept = self.loss.kept(target)
        return logits.new_ones(len(logits), dtype=torch.bool) if kept is None else kept

    def _add(
        self,
        flatness: LogScaled,
        factors: FlatnessFactors,
        kept: Bool[Tensor, " batch"],
        valid: Bool[Tensor, " batch"],
        answers: Answers,
    ) -> None:
        value = flatness.linear()
        log_size = LogScaled(flatness.value.abs(), flatness.log_scale).log()
        geometry = factors.geometry()
        positive = valid & (log_size > -torch.inf) & (flatness.value > 0)
        weight_norm = factors.weight_norm.expand_as(value)
        terms = (
            (value, valid),
            (log_size, positive),
            (factors.layerwise().linear(), valid),
            (factors.logit_trace.linear(), valid),
            (geometry, valid & geometry.isfinite()),
            (factors.feature_norm, valid),
            (weight_norm, valid),
            (value, valid & answers.right),
            (value, valid & answers.wrong),
        )
        sums = [torch.where(mask, term, 0).sum() for term, mask in terms]
        masks = (
            valid,
            positive,
            valid & (flatness.value < 0),
            valid & answers.right,
            valid & answers.wrong,
            valid & geometry.isfinite(),
            kept & ~valid,
            kept & answers.outside,
        )
        # Not in place: a state reset in inference mode could not be changed outside.
        self.sums = self.sums + torch.stack(sums).to(self.sums)
        self.counts = self.counts + torch.stack(masks).sum(1).to(self.counts)
        self._add_to_sketch(sketch_bins(flatness.value, log_size), valid, answers)

    def _add_to_sketch(self, bins: Tensor, valid: Bool[Tensor, " batch"], answers: Answers) -> None:
        place = bins + torch.where(answers.right, 0, SKETCH_BINS)
        self.sketch = self.sketch.view(-1).index_add(0, place, valid.to(self.sketch)).view_as(self.sketch)

    def compute(self) -> dict[str, Tensor]:
        """Return the distribution over all samples so far; see the class for the entries.

        Raises:
            ValueError: if targets were out of range (with ``validate_args=False``).
        """
        sums = dict(zip(_SUMS, self.sums.unbind(), strict=True))
        counts = dict(zip(_COUNTS, self.counts.long().tolist(), strict=True))
        if counts["out_of_range"]:
            raise ValueError(
                f"`target` must hold classes of the head, but {counts['out_of_range']} targets are out of range; "
                f"pass loss={type(self.loss).__name__}(ignore_index=...) if they mark samples to skip."
            )
        nonfinite = torch.tensor(counts["nonfinite"], device=self.device)
        self.histograms, self.per_class = {}, self._per_class()
        if not counts["samples"]:
            return {"nonfinite": nonfinite}
        values = {name: sums[name] / counts["samples"] for name in _MEANS}
        if not counts["negative"]:
            log_mean = sums["log_relative_flatness"] / max(counts["positive"], 1)
            values["geometric_mean"] = log_mean.exp() if counts["positive"] else torch.zeros_like(log_mean)
        quantiles = sketch_quantiles(self.sketch.sum(0).long(), list(_QUANTILES.values()))
        values.update((name, self.sums.new_tensor(q)) for name, q in zip(_QUANTILES, quantiles, strict=True))
        for name in _PARTS:
            if counts[name]:
                values[name] = sums[name] / counts[name]
        self.histograms = self._histograms(has_answers=bool(counts["correct"] or counts["wrong"]))
        return {**values, "nonfinite": nonfinite}

    def _per_class(self) -> dict[str, Tensor]:
        if self.num_classes is None:
            return {}
        total, samples = self.classes
        return {"relative_flatness": total / samples, "samples": samples.long()}

    def _histograms(self, *, has_answers: bool) -> dict[str, Histogram]:
        sketch = self.sketch.long()
        low, high = sketch_log10_range(sketch.sum(0))
        rows = {"correct": sketch[0], "wrong": sketch[1]} if has_answers else {"all": sketch.sum(0)}
        pairs = {name: sketch_histogram(counts, low, high) for name, counts in rows.items()}
        return {name: Histogram(counts.tolist(), edges.tolist()) for name, (counts, edges) in pairs.items()}

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.histograms, self.per_class = {}, {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the flatness of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = RelativeFlatness()
            >>> metric.update(torch.ones(1, 2), torch.eye(2), torch.ones(1, 2))
            >>> figure, axes = metric.plot()
        """
        return self._plot(drawable(self.compute() if val is None else val, _PLOTTED), ax)
