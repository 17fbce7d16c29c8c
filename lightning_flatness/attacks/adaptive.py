"""Cascades of attacks, each on what the ones before left standing."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks.apgd import run_apgd, run_targeted_apgd
from lightning_flatness.attacks.losses import cross_entropy, log_odds, margin
from lightning_flatness.attacks.pgd import climb, decaying_steps
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel

Budget = Literal["fast", "standard"]

_FAST_STEPS, _FAST_SWITCH = 10, 4
_FAST_LAST_STEP = 0.1  # in epsilons
_STANDARD_STEPS = 100
_TARGET_CLASSES = 3
_DLR_CLASSES = 4
"""Fewest classes for which the targeted DLR loss is defined."""


@dataclass(frozen=True)
class AdaptiveAttack:
    """Attack by stages, each on the samples that the stages before could not fool.

    ============  ==============================================================================================
    budget        stages
    ============  ==============================================================================================
    ``fast``      PGD with 10 decaying steps on the cross-entropy, then the same on the margin, which no confidence
                  of the model hides from: for every epoch.
    ``standard``  APGD with 100 steps on the cross-entropy, then 100 steps towards each of the 3 likeliest other
                  classes: for the end of a training.
    ============  ==============================================================================================

    Args:
        threat: the ball and the valid range.
        budget: ``"fast"`` or ``"standard"``.
        autocast_dtype: as for :func:`~lightning_flatness.attacks.pgd`.

    Raises:
        ValueError: if the budget is unknown.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> attack = AdaptiveAttack(ThreatModel(epsilon=0.1), budget="fast")
        >>> attack(model, torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])).success
        tensor([ True, False])
    """

    threat: ThreatModel
    budget: Budget = "standard"
    autocast_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.budget not in get_args(Budget):
            raise ValueError(f"`budget` must be one of {', '.join(get_args(Budget))}, got {self.budget!r}.")

    def __call__(
        self,
        logits_fn: LogitsFunction,
        inputs: Float[Tensor, "batch *shape"],
        target: Shaped[Tensor, " batch"],
        generator: torch.Generator | None = None,
        *,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackResult:
        """Run the stages; what :func:`~lightning_flatness.attacks.pgd` says of random numbers and contexts holds here.

        Args:
            logits_fn: maps inputs to logits, shape ``(batch, classes)``.
            inputs: clean inputs as the model sees them.
            target: true classes.
            generator: source of one seed per sample; None for one seeded with 0.
            clean_logits: outputs for ``inputs`` where they are known already.

        Returns:
            Perturbed inputs, successes and counts, over all stages.

        Raises:
            ValueError: as for :func:`~lightning_flatness.attacks.pgd`.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            options = Options(self.autocast_dtype)
            session = Session(logits_fn, inputs, target, self.threat, generator, clean_logits, options)
            if self.budget == "fast":
                _fast(session)
            else:
                _standard(session)
            return session.result()


def _fast(session: Session) -> None:
    sizes = decaying_steps(session.ball.epsilon, _FAST_STEPS, _FAST_LAST_STEP)
    run = session.start(log_odds, stream=0)
    climb(run, sizes[:_FAST_SWITCH])
    run.objective = margin
    climb(run, sizes[_FAST_SWITCH:])
    run.finish()


def _standard(session: Session) -> None:
    run_apgd(session.start(cross_entropy, 0), _STANDARD_STEPS)
    loss: Literal["dlr", "margin"] = "dlr" if session.clean_logits.shape[1] >= _DLR_CLASSES else "margin"
    run_targeted_apgd(session, loss, _TARGET_CLASSES, _STANDARD_STEPS, stream=1)
