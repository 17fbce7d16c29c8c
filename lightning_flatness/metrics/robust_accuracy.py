"""Accuracy under attack as torchmetrics: of several attacks and the worst of them, and over growing epsilons."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import plot_curve

from lightning_flatness.functional._checks import check_confidence, check_epsilons
from lightning_flatness.functional._numerics import numbers
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._outcomes import Values, check_flags, check_per_sample, proportion, with_interval
from lightning_flatness.metrics._plotting import drawable


class RobustAccuracy(Metric):
    """Accuracy left by each of several attacks, and by all of them together.

    A sample is robust to an attack where it is correct and not fooled; in the *worst case* where no attack fools it,
    which is what an attacker who may choose leaves. States are counts, exact under any batching and on any number of
    processes.

    ``compute`` returns a dictionary of scalars: the share of *all* samples that are robust to each attack, under the
    attack's name, and ``worst_case``, each with its Wilson interval ``{name}_low`` and ``{name}_high``;
    ``clean_accuracy``; and ``samples``, their number. Without samples there is no other entry.

    Args:
        attacks: names of the attacks.
        confidence: of the intervals.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if there is no attack, two entries would have one name, or ``confidence`` is not between 0 and 1.

    Example:
        >>> metric = RobustAccuracy(["pgd", "apgd"])
        >>> successes = {"pgd": torch.tensor([True, False, False]), "apgd": torch.tensor([False, True, False])}
        >>> metric.update(successes, initially_correct=torch.tensor([True, True, True]))
        >>> values = metric.compute()
        >>> print(f"{values['pgd']:.2f} {values['apgd']:.2f} {values['worst_case']:.2f}")
        0.67 0.67 0.33
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    counts: Tensor
    configuration: Tensor

    def __init__(self, attacks: Sequence[str], confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_confidence(confidence)
        if isinstance(attacks, str) or not attacks:
            raise ValueError(f"`attacks` must be a list of at least one name, got {attacks!r}.")
        self.attacks = tuple(attacks)
        self.confidence = confidence
        shares = (*self.attacks, "worst_case")
        entries = [f"{name}{end}" for name in shares for end in ("", "_low", "_high")] + ["clean_accuracy", "samples"]
        twice = {entry for entry in entries if entries.count(entry) > 1}
        if twice:
            raise ValueError(f"`attacks` must have names of their own, got {min(twice)!r} twice in the result.")
        # Samples, initially correct ones, those robust to each attack, and those robust to all.
        self.add_state("counts", torch.zeros(len(shares) + 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("configuration", fingerprint(type(self).__name__, shares, confidence), dist_reduce_fx="max")

    def update(
        self, successes: Mapping[str, Bool[Tensor, " batch"]], initially_correct: Bool[Tensor, " batch"]
    ) -> None:
        """Add what each attack has achieved on one batch; does not wait for the device.

        Args:
            successes: which samples each attack fooled, by the attack's name; counts only where ``initially_correct``.
            initially_correct: classified right without an attack.

        Raises:
            ValueError: if an attack is missing or unknown, or shapes or dtypes do not fit.
        """
        if set(successes) != set(self.attacks):
            raise ValueError(f"`successes` must hold {', '.join(self.attacks)}, got {', '.join(successes) or 'none'}.")
        flags = {f"successes[{name!r}]": success for name, success in successes.items()}
        check_flags(len(initially_correct), {"initially_correct": initially_correct, **flags})
        robust = torch.stack([initially_correct & ~successes[name] for name in self.attacks])
        rows = [torch.ones_like(initially_correct), initially_correct, *robust, robust.all(0)]
        # Not in place: a state reset in inference mode could not be changed outside.
        self.counts = self.counts + torch.stack(rows).sum(1).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Return accuracies over all samples so far; see the class for the entries."""
        samples, correct, *robust = self.counts.long().unbind()
        values: Values = {}
        for name, count in zip((*self.attacks, "worst_case"), robust, strict=True):
            values |= with_interval(name, count, samples, self.confidence)
        return values | proportion("clean_accuracy", correct, samples) | {"samples": samples}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the accuracies of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = RobustAccuracy(["pgd"])
            >>> metric.update({"pgd": torch.tensor([True, False])}, torch.tensor([True, True]))
            >>> figure, axes = metric.plot()
        """
        names = ("clean_accuracy", *self.attacks, "worst_case")
        return self._plot(drawable(self.compute() if val is None else val, names), ax)


class RobustAccuracyCurve(Metric):
    """Accuracy under attacks of growing epsilon.

    A sample that is fooled at one epsilon is fooled at every larger one, since the balls are nested: one number per
    sample, the index of the smallest epsilon that fools it, tells the whole curve. States are counts, exact under any
    batching and on any number of processes.

    ``compute`` returns a dictionary of vectors: ``epsilon``, which is 0 followed by ``epsilons``, and, at each of them,
    ``robust_accuracy``, the share of *all* samples that are still correct, with its Wilson interval
    ``robust_accuracy_low`` and ``robust_accuracy_high``. At 0 it is the clean accuracy. ``samples``, their number, is a
    scalar. Without samples there are only ``epsilon`` and ``samples``.

    Args:
        epsilons: radii of the attacks, in increasing order.
        confidence: of the intervals, at each epsilon by itself.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if ``epsilons`` are not positive and increasing, or ``confidence`` is not between 0 and 1.

    Example:
        >>> metric = RobustAccuracyCurve([0.1, 0.2, 0.3])
        >>> metric.update(torch.tensor([0, 2, 3, 3]), initially_correct=torch.tensor([True, True, True, False]))
        >>> metric.compute()["robust_accuracy"]
        tensor([0.7500, 0.5000, 0.5000, 0.2500], dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    samples: Tensor
    first_fooling: Tensor
    configuration: Tensor

    def __init__(self, epsilons: Sequence[float], confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_epsilons(epsilons)
        check_confidence(confidence)
        self.epsilons = tuple(epsilons)
        self.confidence = confidence
        # Initially correct samples by the index of the first epsilon that fools them; then none, then no index.
        places = torch.zeros(len(epsilons) + 2, dtype=torch.int64)
        self.add_state("first_fooling", places, dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")
        settings = fingerprint(type(self).__name__, self.epsilons, confidence)
        self.add_state("configuration", settings, dist_reduce_fx="max")

    def update(self, index: Int[Tensor, " batch"], initially_correct: Bool[Tensor, " batch"]) -> None:
        """Add a batch; does not wait for the device.

        Args:
            index: of the smallest epsilon at which a sample is fooled; ``len(epsilons)`` where none fools it.
                Not looked at where a sample is wrong from the start.
            initially_correct: classified right without an attack.

        Raises:
            ValueError: if shapes or dtypes do not fit.
        """
        count, none = len(initially_correct), len(self.epsilons)
        check_flags(count, {"initially_correct": initially_correct})
        check_per_sample(count, {"index": index})
        place = torch.where((index >= 0) & (index <= none), index.long(), none + 1)
        # Not in place: a state reset in inference mode could not be changed outside.
        self.first_fooling = self.first_fooling.index_add(0, place, initially_correct.to(self.first_fooling))
        self.samples = self.samples + count

    def compute(self) -> dict[str, Tensor]:
        """Return the curve over all samples so far; see the class for the entries.

        Raises:
            ValueError: if an index was out of range.
        """
        *_, outside = self.first_fooling.long().tolist()
        if outside:
            raise ValueError(f"`index` must be in [0, {len(self.epsilons)}], but {outside} are out of range.")
        counts, samples = self.first_fooling[:-1].long(), self.samples.long()
        standing = counts.flip(0).cumsum(0).flip(0)
        return {
            "epsilon": numbers((0.0, *self.epsilons), counts),
            **with_interval("robust_accuracy", standing, samples.expand_as(standing), self.confidence),
            "samples": samples,
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the curve of one result of ``compute``, or one curve of each of a list of them, with their intervals.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = RobustAccuracyCurve([0.1, 0.2])
            >>> metric.update(torch.tensor([0, 2]), torch.tensor([True, True]))
            >>> figure, axes = metric.plot()
        """
        val = self.compute() if val is None else val
        results = [result for result in ([val] if isinstance(val, Mapping) else val) if "robust_accuracy" in result]
        curves = tuple([result[name] for result in results] for name in ("epsilon", "robust_accuracy"))
        figure, axes = _plot_curve(curves, ax, type(self).__name__)
        for line, result in zip(axes.lines[len(axes.lines) - len(results) :], results, strict=True):
            ends = (result[name].cpu() for name in ("epsilon", "robust_accuracy_low", "robust_accuracy_high"))
            axes.fill_between(*ends, color=line.get_color(), alpha=0.2)
        return figure, axes


def _plot_curve(curve: Any, ax: Any, name: str) -> tuple[Any, Any]:
    return plot_curve(curve, ax=ax, label_names=("epsilon", "robust accuracy"), legend_name="step", name=name)
