"""When the signals of gradient masking are an alarm."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch

from lightning_flatness.functional.statistics import wilson_interval

DIAGNOSED_SAMPLES = 100
"""How many samples the monitor looks at, unless it is told otherwise."""


@dataclass(frozen=True)
class MaskingRule:
    """A threshold that the mean of a signal must pass by more than its sampling error.

    A value in a range is counted like a share: no distribution over the range varies more than one that only takes its
    two ends, so that the Wilson interval of a proportion holds.

    Args:
        reason: what it means and what to do, with a place for the value.
        above: the rule fires above this value, or None.
        below: the rule fires below this value, or None.
        lowest: smallest value of one sample, the largest being 1; None for a value without sampling error.
    """

    reason: str
    above: float | None = None
    below: float | None = None
    lowest: float | None = 0.0

    def fires(self, value: float, samples: int) -> bool:
        """Whether a mean over ``samples`` values is an alarm.

        Args:
            value: mean of the signal.
            samples: number of values.

        Returns:
            Whether the whole 95 % interval lies beyond the threshold.
        """
        low, high = self._interval(value, samples)
        return (self.above is not None and low > self.above) or (self.below is not None and high < self.below)

    def _interval(self, value: float, samples: int) -> tuple[float, float]:
        if self.lowest is None:
            return value, value
        width = 1 - self.lowest
        share = min(max((value - self.lowest) / width, 0.0), 1.0)
        low, high = wilson_interval(torch.tensor(share * samples), torch.tensor(samples))
        return self.lowest + width * float(low), self.lowest + width * float(high)


MASKING_RULES: Mapping[str, MaskingRule] = {
    "zero_gradient_rate": MaskingRule(
        "the gradient of the cross-entropy is exactly 0 for {value:.0%} of the samples, so attacks on it stand still: "
        "attack the margin, divide the logits by a temperature, or look for rounding in the model",
        above=0.02,
    ),
    "gradient_underflow": MaskingRule(
        "{value:.0%} of the gradient's elements are 0 only because they are too small for the model's precision: "
        "multiply the loss by a power of two, or attack in float32",
        above=0.1,
    ),
    "probabilities": MaskingRule(
        "the outputs are probabilities for {value:.0%} of the samples, so a loss with a softmax of its own saturates: "
        "return the logits",
        above=0.5,
    ),
    "randomness": MaskingRule(
        "the logits of the same input change by {value:.2g} of their size between two passes: switch the randomness "
        "off, or attack the expected logits",
        above=1e-3,
        lowest=None,
    ),
    "gradient_alignment": MaskingRule(
        "gradients at neighbouring inputs have a cosine of only {value:.2f}: the gradient leads nowhere, so judge "
        "robustness by attacks without it",
        below=0.2,
        lowest=-1.0,
    ),
    "directional_correlation": MaskingRule(
        "the logits change as the gradient says only with a correlation of {value:.2f}: the backward pass is not the "
        "derivative of the forward pass, so replace the part that is not differentiable",
        below=0.9,
        lowest=-1.0,
    ),
    "loss_decrease_rate": MaskingRule(
        "the loss fell in {value:.0%} of the steps that should raise it: do not trust attacks by gradient",
        above=0.3,
    ),
    "loss_gap": MaskingRule(
        "the margin loss fools a further {value:.0%} of the samples that the cross-entropy does not: report the margin "
        "attack's robust accuracy",
        above=0.25,
    ),
    "unbounded_survival": MaskingRule(
        "{value:.0%} of the samples stand even where the attack may reach every valid input: the attack fails, so its "
        "robust accuracy says nothing",
        above=0.05,
    ),
    "transfer_gap": MaskingRule(
        "adversarial examples of an earlier epoch fool a further {value:.0%} of the samples: the attack got weaker, "
        "not the model better, so count what either of them fools",
        above=0.05,
    ),
    "temperature_gap": MaskingRule(
        "dividing the logits by a temperature fools a further {value:.0%} of the samples: confidence hides the "
        "gradient, so attack softened logits or the margin",
        above=0.05,
    ),
    "black_box_gap": MaskingRule(
        "random search fools a further {value:.0%} of the samples: the gradient misleads attacks, so report the "
        "robust accuracy under random search",
        above=0.05,
    ),
}
"""Signal → rule. Each threshold lies between what honest models reached, of seven architectures, untrained, early,
standard, adversarially trained and trained until almost every loss is 0, and what masked ones did (tests/benchmarks).
``loss_underflow_rate`` has no rule: 85 % of the losses of an honest network can be 0 while every gradient is right."""


def masking_reasons(values: Mapping[str, float], samples: int | Mapping[str, int]) -> list[str]:
    """Say in words which rules fire; none for an honest model.

    Args:
        values: means of the signals of :func:`~lightning_flatness.attacks.masking_signals`, over all batches and
            processes; rules without a value do not fire.
        samples: number of samples that they are means of, of all or of each signal: few of them prove little.

    Returns:
        One sentence per rule, in the order of ``MASKING_RULES``.

    Example:
        >>> for reason in masking_reasons({"zero_gradient_rate": 0.0, "loss_gap": 0.4}, samples=100):
        ...     print(reason)
        loss_gap: the margin loss fools a further 40% of the samples that the cross-entropy does not:
        report the margin attack's robust accuracy.
    """
    counts = samples if isinstance(samples, Mapping) else dict.fromkeys(MASKING_RULES, samples)
    return [
        f"{name}: {rule.reason.format(value=values[name])}."
        for name, rule in MASKING_RULES.items()
        if isfinite(values.get(name, torch.nan)) and rule.fires(values[name], counts[name])
    ]
