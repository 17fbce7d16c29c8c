"""What an attack returns."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Outcome of an attack on a batch.

    Args:
        x_adv: for fooled samples the first input that fooled (the one with the largest loss if the attack went on),
            for the others the one with the largest loss, at worst the clean input; in the dtype of the inputs.
        success: fooled now; False where the clean input was wrong from the start.
        initially_correct: classified as ``target`` without an attack.
        loss: cross-entropy of ``x_adv`` in nats, whatever loss the attack used; NaN where the clean logits are.
        steps_to_fool: gradient steps, over all restarts and stages, before the first fooling input; -1 for none, and
            where an attack of torchattacks does not say.
        nonfinite: met a NaN or infinity in logits or gradients; such logits never count as a success.
        forwards: samples that went through the model, all forward passes together.
        backwards: samples that a gradient was computed for.
        path: clean input, start and iterates of the first run where it was recorded; a sample's path stays where it
            was fooled or, wrong from the start, was never attacked.
        path_steps: gradient steps before each point of ``path``; -1 for the clean input.
        rejected: a foreign attack returned NaN, or a point outside the ball or the valid range, which counts for
            nothing; all False for our own attacks, which cannot.
    """

    x_adv: Float[Tensor, "batch *shape"]
    success: Bool[Tensor, " batch"]
    initially_correct: Bool[Tensor, " batch"]
    loss: Float[Tensor, " batch"]
    steps_to_fool: Int[Tensor, " batch"]
    nonfinite: Bool[Tensor, " batch"]
    forwards: int
    backwards: int
    path: Float[Tensor, "points batch *shape"] | None = None
    path_steps: tuple[int, ...] = ()
    rejected: Bool[Tensor, " batch"] | None = None
