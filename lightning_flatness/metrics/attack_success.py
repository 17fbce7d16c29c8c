"""What attacks achieve, as torchmetrics: counts of fooled samples, and how far their loss rose."""

from math import isfinite, log
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from lightning_flatness.functional._checks import check_confidence, check_num_classes
from lightning_flatness.functional._numerics import wide
from lightning_flatness.functional.statistics import histogram_quantiles
from lightning_flatness.metrics._configuration import fingerprint
from lightning_flatness.metrics._outcomes import Values, check_flags, check_per_sample, proportion, with_interval
from lightning_flatness.metrics._plotting import drawable

_COUNTS = (
    "samples",
    "initially_correct",
    "fooled",
    "measured",
    "measured_correct",
    "loss_fooled",
    "nonfinite",
    "rejected",
)
_CLASS_COUNTS = _COUNTS[:3]
_SUMS = ("loss_increase", "steps_to_fool")
_RATES = ("success_rate", "robust_accuracy", "clean_accuracy", "loss_success_rate")
_MAX_STEPS = 4096
"""Most gradient steps that the median tells apart."""


class AttackSuccessRate(Metric):
    r"""How often an attack succeeds, how much accuracy it leaves, and how far it drives the loss up.

    States are sums and counts of bounded size, so that the result is exact under any batching and on any number of
    processes.

    ``compute`` returns a dictionary of scalars:

    - ``success_rate``: fooled samples among the *initially correct* ones, with its Wilson interval from
      ``success_rate_low`` to ``success_rate_high``;
    - ``robust_accuracy``: samples still correct among *all*, with ``robust_accuracy_low`` and ``robust_accuracy_high``;
    - ``clean_accuracy``: initially correct samples among all;
    - ``loss_increase``: mean of ``ℓ(x') − ℓ(x)`` in nats, over all samples;
    - ``loss_success_rate``: samples with ``ℓ(x') − ℓ(x) > loss_threshold`` among the initially correct ones: another
      event than a flipped prediction, neither implies the other;
    - ``steps_to_fool``, ``steps_to_fool_mean``: median (the lower one of two) and mean number of gradient steps before
      a sample was fooled, over the fooled samples; the median is 4096 where it is larger;
    - ``samples``, ``nonfinite``, ``rejected``: numbers of samples, of those whose attack met a NaN or infinity or whose
      increase of the loss is none, which are left out of what is said of the loss, and of those whose adversarial
      input was refused.

    A value that cannot be had (``success_rate`` where no sample is initially correct) has no entry. After ``compute``,
    ``per_class`` holds ``samples``, ``clean_accuracy``, and ``success_rate`` and ``robust_accuracy`` with their
    intervals, as tensors with one entry per class, NaN where a class has no such sample; it is empty without
    ``num_classes``.

    Args:
        loss_threshold: increase of the loss, in nats, beyond which an attack on the loss counts as a success. At the
            default, log 2, the probability of the true class has fallen to less than half of what it was.
        num_classes: number of classes, for rates per class; ``update`` then needs ``target``.
        confidence: of the intervals.
        kwargs: as for :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Walter et al., *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231, for success as an
        increase of the loss.

    Example:
        >>> metric = AttackSuccessRate()
        >>> success, correct = torch.tensor([True, False, False]), torch.tensor([True, True, False])
        >>> losses = torch.tensor([[0.1, 0.2, 2.0], [3.1, 0.2, 2.0]])
        >>> metric.update(success, correct, clean_loss=losses[0], adv_loss=losses[1])
        >>> values = metric.compute()
        >>> print(f"{values['success_rate']:.2f} {values['robust_accuracy']:.2f} {values['loss_increase']:.2f}")
        0.50 0.33 1.00
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound: float | None = 0.0
    plot_upper_bound: float | None = 1.0

    counts: Tensor
    sums: Tensor
    steps: Tensor
    class_counts: Tensor
    configuration: Tensor

    def __init__(
        self,
        loss_threshold: float = log(2),
        num_classes: int | None = None,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (isfinite(loss_threshold) and loss_threshold >= 0):
            raise ValueError(f"`loss_threshold` must be >= 0 and finite, got {loss_threshold}.")
        check_num_classes(num_classes)
        check_confidence(confidence)
        self.loss_threshold = loss_threshold
        self.num_classes = num_classes
        self.confidence = confidence
        self.per_class: Values = {}
        self._add_counts("counts", len(_COUNTS))
        self._add_counts("steps", _MAX_STEPS + 1)
        # One column more, for targets that are no class.
        self._add_counts("class_counts", len(_CLASS_COUNTS), (num_classes or 0) + 1)
        self.add_state("sums", torch.zeros(len(_SUMS), dtype=torch.float64), dist_reduce_fx="sum")
        settings = fingerprint(type(self).__name__, loss_threshold, num_classes, confidence)
        self.add_state("configuration", settings, dist_reduce_fx="max")

    def _add_counts(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        success: Bool[Tensor, " batch"],
        initially_correct: Bool[Tensor, " batch"],
        target: Int[Tensor, " batch"] | None = None,
        clean_loss: Float[Tensor, " batch"] | None = None,
        adv_loss: Float[Tensor, " batch"] | None = None,
        steps_to_fool: Int[Tensor, " batch"] | None = None,
        nonfinite: Bool[Tensor, " batch"] | None = None,
        rejected: Bool[Tensor, " batch"] | None = None,
    ) -> None:
        """Add the outcome of an attack on a batch; does not wait for the device.

        Args:
            success: fooled by the attack; counts only where ``initially_correct``.
            initially_correct: classified as ``target`` without an attack.
            target: true classes, looked at with ``num_classes``.
            clean_loss: loss of the clean inputs in nats.
            adv_loss: loss of the perturbed inputs in nats.
            steps_to_fool: gradient steps before a sample was fooled; negative where that is not known.
            nonfinite: met a NaN or infinity on the way.
            rejected: the perturbed input was none that the attack may use.

        Raises:
            ValueError: if shapes or dtypes do not fit, or one of two that belong together is missing.
        """
        count = len(initially_correct)
        flags = {"success": success, "initially_correct": initially_correct}
        check_flags(count, {**flags, "nonfinite": nonfinite, "rejected": rejected})
        losses = {"clean_loss": clean_loss, "adv_loss": adv_loss}
        check_per_sample(count, {**losses, "target": target, "steps_to_fool": steps_to_fool})
        fooled, none = success & initially_correct, torch.zeros_like(initially_correct)
        rise = _rise(clean_loss, adv_loss, like=none)
        measured = rise.isfinite()
        unmeasured = none if clean_loss is None else ~measured
        masks = (
            ~none,
            initially_correct,
            fooled,
            measured,
            measured & initially_correct,
            measured & initially_correct & (rise > self.loss_threshold),
            unmeasured if nonfinite is None else unmeasured | nonfinite,
            none if rejected is None else rejected,
        )
        self._count_classes(target, torch.stack(masks[: len(_CLASS_COUNTS)]))
        steps = none.long() - 1 if steps_to_fool is None else steps_to_fool.long()
        self._add(torch.stack(masks), torch.where(measured, rise, 0), steps, fooled & (steps >= 0))

    def _add(
        self,
        masks: Bool[Tensor, "counts batch"],
        rise: Float[Tensor, " batch"],
        steps: Int[Tensor, " batch"],
        timed: Bool[Tensor, " batch"],
    ) -> None:
        sums = torch.stack([rise.sum(), wide(torch.where(timed, steps, 0)).sum()])
        # Not in place: a state reset in inference mode could not be changed outside.
        self.counts = self.counts + masks.sum(1).to(self.counts)
        self.sums = self.sums + sums.to(self.sums)
        # bincount would wait for the device.
        self.steps = self.steps.index_add(0, steps.clamp(0, _MAX_STEPS), timed.to(self.steps))

    def _count_classes(self, target: Tensor | None, flags: Bool[Tensor, "counts batch"]) -> None:
        if self.num_classes is None:
            return
        if target is None:
            raise ValueError(f"`target` must be given with num_classes={self.num_classes}, got None.")
        place = torch.where((target >= 0) & (target < self.num_classes), target.long(), self.num_classes)
        self.class_counts = self.class_counts.index_add(1, place, flags.to(self.class_counts))

    def compute(self) -> dict[str, Tensor]:
        """Return rates, losses and counts over all samples so far; see the class for the entries.

        Raises:
            ValueError: if targets were out of range of ``num_classes``.
        """
        counts = dict(zip(_COUNTS, self.counts.long().unbind(), strict=True))
        sums = dict(zip(_SUMS, self.sums.unbind(), strict=True))
        self.per_class = self._per_class()
        values = self._rates(counts["samples"], counts["initially_correct"], counts["fooled"])
        values |= proportion("loss_increase", sums["loss_increase"], counts["measured"])
        values |= proportion("loss_success_rate", counts["loss_fooled"], counts["measured_correct"])
        steps = self.steps.long()
        if bool(steps.any()):
            values["steps_to_fool"] = histogram_quantiles(steps, [0.5])[0].to(self.device)
            values |= proportion("steps_to_fool_mean", sums["steps_to_fool"], steps.sum())
        return values | {name: counts[name] for name in ("samples", "nonfinite", "rejected")}

    def _per_class(self) -> Values:
        if self.num_classes is None:
            return {}
        class_counts = self.class_counts.long()
        outside = int(class_counts[0, -1])
        if outside:
            raise ValueError(
                f"`target` must be in [0, {self.num_classes}), but {outside} targets are out of range; "
                "pass num_classes= of the model."
            )
        samples, correct, fooled = class_counts[:, :-1]
        return {**self._rates(samples, correct, fooled), "samples": samples}

    def _rates(self, samples: Tensor, correct: Tensor, fooled: Tensor) -> Values:
        return {
            **with_interval("success_rate", fooled, correct, self.confidence),
            **with_interval("robust_accuracy", correct - fooled, samples, self.confidence),
            **proportion("clean_accuracy", correct, samples),
        }

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.per_class = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the rates of one result of ``compute``, or of a list of them as curves.

        Args:
            val: result or results of ``compute``; by default the current one.
            ax: matplotlib axes to draw on; by default new ones.

        Returns:
            Figure and axes.

        Example:
            >>> metric = AttackSuccessRate()
            >>> metric.update(torch.tensor([True, False]), torch.tensor([True, True]))
            >>> figure, axes = metric.plot()
        """
        return self._plot(drawable(self.compute() if val is None else val, _RATES), ax)


def _rise(clean_loss: Tensor | None, adv_loss: Tensor | None, like: Tensor) -> Float[Tensor, " batch"]:
    """Increase of the loss; NaN where it is not given."""
    if clean_loss is None and adv_loss is None:
        return wide(torch.full_like(like, torch.nan, dtype=torch.float32))
    if clean_loss is None or adv_loss is None:
        missing, given = ("clean", "adv") if clean_loss is None else ("adv", "clean")
        raise ValueError(f"`{missing}_loss` must be given with `{given}_loss`, got None.")
    return wide(adv_loss.detach()) - wide(clean_loss.detach())
