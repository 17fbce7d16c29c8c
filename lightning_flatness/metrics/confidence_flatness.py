"""Confidence against flatness: how they go together, and what they tell of adversarial inputs."""

from collections.abc import Mapping
from math import cos, isfinite, pi, sin
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_roc

from lightning_flatness.functional._checks import check_finite
from lightning_flatness.functional._numerics import wide
from lightning_flatness.functional.statistics import histogram_rank_correlation
from lightning_flatness.metrics._outcomes import check_flags, check_per_sample
from lightning_flatness.metrics._plotting import drawable

_GROUPS = ("correct", "wrong", "adversarial")
_PER_DECADE = 16
_FLATNESS_DECADES = (-16, 8)
_ODDS_DECADES = (-2, 16)
_COARSE = 8
"""Bins of the counts to one of the histogram that is shown."""
_DIRECTIONS = 64


class JointHistogram(NamedTuple):
    """Numbers of samples by relative flatness and by the odds of the prediction.

    Args:
        counts: a row for each bin of ``log10 κ``, a column for each of ``log10`` of the odds.
        flatness_edges: of the rows, one more than rows.
        odds_edges: of the columns, one more than columns.
    """

    counts: list[list[int]]
    flatness_edges: list[float]
    odds_edges: list[float]


class ConfidenceFlatness(Metric):
    r"""How relative flatness and confidence go together: for right, for wrong and for adversarial inputs.

    States are the counts of a joint histogram with fixed bins, 16 per decade of ``κ`` and of the odds
    ``p / (1 − p)`` of the predicted class (κ from 1e-16 to 1e8, odds from 0.01 to 1e16, beyond in the last bins): exact
    under any batching and on any number of processes.

    ``compute`` returns, for ``correct``, ``wrong`` and ``adversarial``, ``{group}_samples`` and
    ``{group}_rank_correlation``: Spearman's, of the binned quantities; in one bin, samples count as tied (an error
    below 0.01 unless a bin holds a large share of them). A value that cannot be had has no entry. After ``compute``,
    ``histograms`` holds a coarser histogram, 2 bins per decade, for each group that has samples.

    Args:
        kwargs: as for :class:`torchmetrics.Metric`.

    Example:
        >>> metric = ConfidenceFlatness()
        >>> flatness, confidence = torch.tensor([10.0, 1.0, 1e-3]), torch.tensor([0.5, 0.9, 0.999])
        >>> metric.update(flatness, confidence, correct=torch.tensor([True, True, True]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'correct_samples': 3, 'correct_rank_correlation': -1.0, 'wrong_samples': 0, 'adversarial_samples': 0}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    plot_lower_bound: float | None = -1.0
    plot_upper_bound: float | None = 1.0

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.histograms: dict[str, JointHistogram] = {}
        self.add_state(
            "counts",
            torch.zeros(len(_GROUPS), _bins(_FLATNESS_DECADES), _bins(_ODDS_DECADES), dtype=torch.int64),
            dist_reduce_fx="sum",
        )

    def update(
        self,
        flatness: Float[Tensor, " batch"],
        confidence: Float[Tensor, " batch"],
        correct: Bool[Tensor, " batch"],
        adversarial: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Add samples; those with a NaN are left out. Does not wait for the device.

        Args:
            flatness: relative flatness of each sample.
            confidence: probability of its predicted class, in float64 where it is close to 1.
            correct: whether the prediction is right; not looked at where ``adversarial``.
            adversarial: which inputs are adversarial; None where none is.

        Raises:
            ValueError: if shapes or dtypes do not fit.
        """
        check_per_sample(len(correct), {"flatness": flatness, "confidence": confidence})
        check_flags(len(correct), {"correct": correct, "adversarial": adversarial})
        # Below 0 and above 1 there is no logarithm: they belong in the outermost bins, not among the NaN.
        p = wide(confidence).clamp(max=1)
        rows = _place(wide(flatness).clamp(min=0).log10(), _FLATNESS_DECADES)
        columns = _place(p.log10() - (1 - p).log10(), _ODDS_DECADES)
        group = torch.where(correct, 0, 1)
        group = group if adversarial is None else torch.where(adversarial, 2, group)
        place = (group * self.counts.shape[1] + rows) * self.counts.shape[2] + columns
        valid = ~(flatness.isnan() | confidence.isnan())
        # Not in place: a state reset in inference mode could not be changed outside.
        self.counts = self.counts.view(-1).index_add(0, place, valid.to(self.counts)).view_as(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return rank correlations and numbers of samples; see the class for the entries."""
        self.histograms = {}
        values: dict[str, Tensor] = {}
        for name, counts in zip(_GROUPS, self.counts.long(), strict=True):
            values[f"{name}_samples"] = counts.sum()
            if not int(counts.sum()):
                continue
            correlation = histogram_rank_correlation(counts)
            if isfinite(correlation):
                values[f"{name}_rank_correlation"] = wide(counts.new_tensor(correlation, dtype=torch.float32))
            self.histograms[name] = _coarse(counts)
        return values

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.histograms = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the rank correlations of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = ConfidenceFlatness()
            >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0.9, 0.6]), torch.tensor([True, True]))
            >>> figure, axes = metric.plot()
        """
        names = [f"{group}_rank_correlation" for group in _GROUPS]
        return self._plot(drawable(self.compute() if val is None else val, names), ax)


def detection_scores(
    flatness_clean: Float[Tensor, " clean"],
    flatness_adv: Float[Tensor, " adversarial"],
    confidence_clean: Float[Tensor, " clean"],
    confidence_adv: Float[Tensor, " adversarial"],
) -> Mapping[str, float]:
    """How well relative flatness, confidence, and both together tell adversarial inputs from clean ones.

    Only the order of the values counts. Thresholds and directions are chosen on the samples given, which flatters the
    detector: for 200 samples of each kind that cannot be told apart, the accuracies are about 0.54, and 0.56 for both.

    Args:
        flatness_clean: relative flatness of clean inputs.
        flatness_adv: relative flatness of adversarial inputs.
        confidence_clean: probability of the predicted class for the same clean inputs.
        confidence_adv: the same for the adversarial inputs.

    Returns:
        ``flatness_auroc`` and ``confidence_auroc``, the probability that an adversarial input is *sharper*, or *more
        confident*, than a clean one (below 0.5: flatter, less confident); ``flatness_accuracy`` and
        ``confidence_accuracy``, the best balanced accuracy of one threshold, in whichever direction; ``both_auroc`` and
        ``both_accuracy``, the best over 64 weighted sums of the two ranks.

    Raises:
        ValueError: if shapes do not fit, there is no sample of a kind, or a value is not finite.

    Example:
        >>> scores = detection_scores(
        ...     torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]), torch.tensor([0.9, 0.8]), torch.tensor([0.9, 0.9])
        ... )
        >>> scores["flatness_auroc"], scores["confidence_auroc"], scores["both_accuracy"]
        (0.75, 0.75, 1.0)
    """
    given = {"clean": (flatness_clean, confidence_clean), "adv": (flatness_adv, confidence_adv)}
    for kind, (flatness, confidence) in given.items():
        if not len(flatness):
            raise ValueError(f"`flatness_{kind}` must hold at least one value, got none.")
        check_per_sample(len(flatness), {f"confidence_{kind}": confidence})
        check_finite(**{f"flatness_{kind}": flatness, f"confidence_{kind}": confidence})
    is_adv = torch.cat([torch.zeros(len(flatness_clean)), torch.ones(len(flatness_adv))]).long()
    flatness, confidence = (
        _ranks(torch.cat([wide(clean), wide(adv)]).cpu())
        for clean, adv in ((flatness_clean, flatness_adv), (confidence_clean, confidence_adv))
    )
    angles = [pi * index / _DIRECTIONS for index in range(_DIRECTIONS)]
    mixed = [_separation(cos(angle) * flatness + sin(angle) * confidence, is_adv) for angle in angles]
    scores: dict[str, float] = {}
    for name, ranks in (("flatness", flatness), ("confidence", confidence)):
        scores[f"{name}_auroc"], scores[f"{name}_accuracy"] = _separation(ranks, is_adv)
    scores["both_auroc"] = max(max(auroc, 1 - auroc) for auroc, _ in mixed)
    scores["both_accuracy"] = max(accuracy for _, accuracy in mixed)
    return scores


def _separation(score: Float[Tensor, " samples"], is_adv: Tensor) -> tuple[float, float]:
    """AUROC, and the balanced accuracy of the best threshold in the better direction."""
    share = _ranks(score)  # torchmetrics takes what is not in [0, 1] for logits
    false_positives, true_positives, _ = binary_roc(share, is_adv)
    balanced = (1 + true_positives - false_positives) / 2
    return float(binary_auroc(share, is_adv)), float(torch.maximum(balanced, 1 - balanced).max())


def _ranks(values: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Ranks in [0, 1), the same for equal values."""
    order = values.sort().values
    return torch.searchsorted(order, values).double() / len(values)


def _bins(decades: tuple[int, int]) -> int:
    return (decades[1] - decades[0]) * _PER_DECADE


def _place(log10: Float[Tensor, " batch"], decades: tuple[int, int]) -> Tensor:
    place = (log10.nan_to_num(0.0, torch.inf, -torch.inf) - decades[0]) * _PER_DECADE
    return place.floor().clamp(0, _bins(decades) - 1).long()


def _coarse(counts: Tensor) -> JointHistogram:
    rows, columns = (size // _COARSE for size in counts.shape)
    sums = counts.view(rows, _COARSE, columns, _COARSE).sum((1, 3))
    edges = [
        torch.linspace(low, high, size + 1, dtype=torch.float64).tolist()
        for (low, high), size in ((_FLATNESS_DECADES, rows), (_ODDS_DECADES, columns))
    ]
    return JointHistogram(sums.tolist(), *edges)
