"""Attacks on a classifier whose head is multiplied by a number: what confidence alone does to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_flatness.attacks._noise import DrawnSeeds, sample_seeds
from lightning_flatness.attacks._oracle import LogitsFunction, Oracle, usable
from lightning_flatness.attacks._probes import ordinary_cross_entropy
from lightning_flatness.attacks.losses import AttackLoss, margin
from lightning_flatness.attacks.pgd import pgd
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._checks import check_scales
from lightning_flatness.functional._numerics import wide


@dataclass(frozen=True, eq=False)
class ScaledHeadAttack:
    """Outcome of attacks on a batch at many scales of the head, one row per scale.

    Args:
        initially_correct: classified as ``target`` without an attack; the same at every scale, up to ties.
        fooled_by_cross_entropy: fooled by PGD on the cross-entropy of that scale.
        fooled_by_margin: fooled by PGD on the margin of that scale.
        zero_gradient: the input gradient of the cross-entropy at the clean input is exactly 0.
        source_success: fooled at scale 1 by either attack, whose inputs are ``x_adv``; one value per sample.
        transfer_success: those inputs fool at this scale too.
        x_adv: for samples fooled at scale 1 the first input that fooled, for others the one with the largest loss.
        forwards: samples that went through the model, all forward passes together.
        backwards: samples that a gradient was computed for.
    """

    initially_correct: Bool[Tensor, "scales batch"]
    fooled_by_cross_entropy: Bool[Tensor, "scales batch"]
    fooled_by_margin: Bool[Tensor, "scales batch"]
    zero_gradient: Bool[Tensor, "scales batch"]
    source_success: Bool[Tensor, " batch"]
    transfer_success: Bool[Tensor, "scales batch"]
    x_adv: Float[Tensor, "batch *shape"]
    forwards: int
    backwards: int

    def rates(self) -> dict[str, tuple[Float[Tensor, " scales"], Float[Tensor, ""]]]:
        """Sum over samples and number of samples of each rate; both add up over batches and processes.

        Returns:
            ``robust_accuracy_cross_entropy`` and ``robust_accuracy_margin``, samples still correct / all;
            ``transfer_success_rate``, samples fooled by the inputs that fool at scale 1 / those inputs;
            ``zero_gradient_rate``, of all samples.
        """
        everyone = torch.ones_like(self.source_success)
        shares = {
            "robust_accuracy_cross_entropy": (self.initially_correct & ~self.fooled_by_cross_entropy, everyone),
            "robust_accuracy_margin": (self.initially_correct & ~self.fooled_by_margin, everyone),
            "transfer_success_rate": (self.transfer_success, self.source_success),
            "zero_gradient_rate": (self.zero_gradient, everyone),
        }
        return {name: (wide(part).sum(1), wide(whole).sum()) for name, (part, whole) in shares.items()}


def attack_scaled_head(
    logits_fn: LogitsFunction,
    inputs: Float[Tensor, "batch *shape"],
    target: Int[Tensor, " batch"],
    threat: ThreatModel,
    *,
    scales: Sequence[float],
    steps: int = 10,
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "batch classes"] | None = None,
) -> ScaledHeadAttack:
    """Attack ``s · logits_fn`` for many ``s``, which all have the same decisions and the same robustness.

    PGD on the cross-entropy, taken as torch computes it, calls a head with a large ``s`` robust, because its gradients
    are 0; PGD on the margin, and inputs found at ``s = 1``, are not impressed. Each attack starts from the same random
    points at every scale. A module whose head's weight and bias really are multiplied rounds its logits anew, and in
    half precision its features' gradients too; decisions and gradients agree up to that.

    Args:
        logits_fn: maps inputs to logits, shape ``(batch, classes)``: usually the model, in evaluation mode.
        inputs: clean inputs as the model sees them.
        target: true classes.
        threat: the ball and the valid range.
        scales: factors of the logits.
        steps: gradient steps of each attack.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already, which saves a forward pass.

    Returns:
        What each attack does at each scale.

    Raises:
        ValueError: if ``scales`` are not different positive numbers, or as for :func:`~lightning_flatness.attacks.pgd`.

    References:
        Walter et al., *When Flatness Does (Not) Guarantee Adversarial Robustness*, arXiv 2510.14231.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> inputs, target = torch.tensor([[0.6, 0.5], [0.7, 0.3]]), torch.tensor([0, 0])
        >>> result = attack_scaled_head(model, inputs, target, ThreatModel(epsilon=0.3), scales=[1.0, 1000.0])
        >>> result.fooled_by_cross_entropy.tolist(), result.fooled_by_margin.tolist()
        ([[True, True], [True, False]], [[True, True], [True, True]])
        >>> result.transfer_success.tolist()
        [[True, True], [True, True]]
    """
    check_scales(scales)
    seeds, base = sample_seeds(len(inputs), generator, inputs.device), Oracle(logits_fn, None)
    clean = base.logits(inputs) if clean_logits is None else clean_logits
    attacked = _Scaled(logits_fn, inputs, target, threat, steps, seeds, clean)
    at = {scale: attacked.by_scale(scale) for scale in dict.fromkeys((1.0, *map(float, scales)))}
    by_cross_entropy, by_margin, _ = at[1.0]
    source = by_cross_entropy.success | by_margin.success
    is_first = by_cross_entropy.success.view(-1, *[1] * (inputs.ndim - 1))
    x_adv = torch.where(is_first, by_cross_entropy.x_adv, by_margin.x_adv)
    logits_adv, wanted = base.logits(x_adv), [at[float(scale)] for scale in scales]
    moved = torch.stack([_is_other(scale * logits_adv, target) for scale in scales])
    return ScaledHeadAttack(
        initially_correct=torch.stack([first.initially_correct for first, _, _ in wanted]),
        fooled_by_cross_entropy=torch.stack([first.success for first, _, _ in wanted]),
        fooled_by_margin=torch.stack([second.success for _, second, _ in wanted]),
        zero_gradient=torch.stack([flat for _, _, flat in wanted]),
        source_success=source,
        transfer_success=source & moved,
        x_adv=x_adv,
        forwards=base.forwards + attacked.forwards,
        backwards=attacked.backwards,
    )


def _is_other(logits: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    return usable(logits) & (logits.argmax(1) != target)


class _Scaled:
    """Attacks on one batch that differ in the scale and the loss only, and their passes."""

    def __init__(
        self,
        logits_fn: LogitsFunction,
        inputs: Tensor,
        target: Tensor,
        threat: ThreatModel,
        steps: int,
        seeds: Int[Tensor, " batch"],
        clean_logits: Tensor,
    ) -> None:
        self.forwards = self.backwards = 0
        self._logits_fn, self._clean_logits, self._threat = logits_fn, clean_logits, threat
        self._inputs, self._target = inputs, target
        self._steps, self._seeds = steps, seeds

    def by_scale(self, scale: float) -> tuple[AttackResult, AttackResult, Bool[Tensor, " batch"]]:
        """Attack by cross-entropy and by margin, and see which gradients of the cross-entropy are 0."""
        attacks = [self._attack(scale, loss) for loss in (ordinary_cross_entropy, margin)]
        oracle = Oracle(self._at(scale), None)
        with torch.inference_mode(mode=False), torch.enable_grad():
            inputs, target = self._inputs.detach().clone(), self._target.detach().clone().long()
            flat = oracle.differentiate(inputs, target, ordinary_cross_entropy).is_flat()
        self.forwards += oracle.forwards
        self.backwards += oracle.backwards
        return attacks[0], attacks[1], flat

    def _at(self, scale: float) -> LogitsFunction:
        return lambda inputs: scale * self._logits_fn(inputs)

    def _attack(self, scale: float, loss: AttackLoss) -> AttackResult:
        result = pgd(
            self._at(scale),
            self._inputs,
            self._target,
            self._threat,
            steps=self._steps,
            loss=loss,
            generator=DrawnSeeds(self._seeds),
            clean_logits=scale * self._clean_logits,
        )
        self.forwards += result.forwards
        self.backwards += result.backwards
        return result
