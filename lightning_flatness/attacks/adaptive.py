"""Cascades of attacks, each on what the ones before left standing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_flatness.attacks._oracle import LogitsFunction, Oracle
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks.adapter import TorchattacksAttack, from_torchattacks
from lightning_flatness.attacks.apgd import run_apgd, run_targeted_apgd
from lightning_flatness.attacks.losses import cross_entropy, log_odds, margin
from lightning_flatness.attacks.pgd import climb, decaying_steps
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel

Budget = Literal["fast", "standard", "thorough"]

_FAST_STEPS, _FAST_SWITCH = 10, 4
_FAST_LAST_STEP = 0.1  # in epsilons
_STANDARD_STEPS = 100
_TARGET_CLASSES = 3
_ALL_TARGET_CLASSES = 9
_DLR_CLASSES = 4
"""Fewest classes for which the targeted DLR loss is defined."""
_APGD = {"APGD": {"steps": 100}}
_TARGETED_APGD = {"APGDT": {"steps": 100}}
_FAB_AND_SQUARE = {
    "FAB": {"steps": 100, "multi_targeted": True},
    "Square": {"n_queries": 5000, "resc_schedule": False},
}
"""AutoAttack as published; torchattacks' own has 10 steps and another schedule."""


@dataclass(frozen=True)
class AdaptiveAttack:
    """Attack by stages, each on the samples that the stages before could not fool.

    ============  ==============================================================================================
    budget        stages
    ============  ==============================================================================================
    ``fast``      PGD with 10 decaying steps: 4 on the log-odds at a temperature of the logits' own, 6 on the margin,
                  neither of which any confidence of the model hides from: for every epoch.
    ``standard``  APGD with 100 steps on the cross-entropy, then 100 steps towards each of the 3 likeliest other
                  classes: for the end of a training.
    ``thorough``  AutoAttack as published, by torchattacks: APGD with 100 steps on the cross-entropy, then towards each
                  of the 9 likeliest other classes, FAB with 100 steps towards each of them, Square with 5000 queries:
                  for the final numbers.
    ============  ==============================================================================================

    Measured on 100 digits each, on a standard CNN at ε = 0.1 and an adversarially trained one at ε = 0.2
    (tests/benchmarks/test_attacks.py), in passes per sample, forwards and backwards together, and robust accuracy:

    ==============  ==============  =================  ==============  =================
    budget          passes, std.    robust, std.       passes, adv.    robust, adv.
    ==============  ==============  =================  ==============  =================
    ``fast``        13              .430 (+ .040)      19              .800 (+ .000)
    ``standard``    326             .390, same digits  647             .800, same digits
    AutoAttack      3,923           .390               7,848           .800
    ==============  ==============  =================  ==============  =================

    ``fast`` left fewer digits standing than PGD with 20 steps of ε/8, at 2.3 to 3.7 times its speed.

    Args:
        threat: the ball and the valid range.
        budget: ``"fast"``, ``"standard"`` or ``"thorough"``.
        autocast_dtype: as for :func:`~lightning_flatness.attacks.pgd`.

    Raises:
        ValueError: if the budget is unknown, or the threat model is none that torchattacks can work with.
        ImportError: if the budget needs torchattacks and it is missing.

    References:
        Croce and Hein, *Reliable evaluation of adversarial robustness*, ICML 2020.

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
        if self.budget == "thorough":
            self._parts(_APGD | _TARGETED_APGD | _FAB_AND_SQUARE)

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
            elif self.budget == "standard":
                _standard(session)
            else:
                self._thorough(session)
            return session.result()

    def check(
        self,
        logits_fn: LogitsFunction,
        inputs: Float[Tensor, "batch *shape"],
        target: Shaped[Tensor, " batch"],
    ) -> None:
        """Try ``"fast"`` on two samples, and every part of torchattacks that the budget needs, as cheaply as can be.

        Args:
            logits_fn: maps inputs to logits.
            inputs: clean inputs as the model sees them.
            target: classes.

        Raises:
            ValueError: if the attack cannot work on such inputs.
        """
        replace(self, budget="fast")(logits_fn, inputs[:2], target[:2])
        if self.budget == "thorough":
            with torch.inference_mode(mode=False):
                num_classes = Oracle(logits_fn, None).logits(inputs[:1].clone()).shape[1]
            targeted = _TARGETED_APGD if num_classes >= _DLR_CLASSES else {}
            for part in self._parts(_APGD | targeted | _FAB_AND_SQUARE):
                part.check(logits_fn, inputs, target)

    def _thorough(self, session: Session) -> None:
        # Published for 4 classes and more, since there is no DLR loss for fewer.
        has_dlr = session.clean_logits.shape[1] >= _DLR_CLASSES
        for part in self._parts(_APGD | (_TARGETED_APGD if has_dlr else {})):
            part.run(session)
        if not has_dlr:
            run_targeted_apgd(session, "margin", _ALL_TARGET_CLASSES, _STANDARD_STEPS, stream=0)
        for part in self._parts(_FAB_AND_SQUARE):
            part.run(session)

    def _parts(self, names: Mapping[str, Mapping[str, Any]]) -> list[TorchattacksAttack]:
        return [from_torchattacks(name, self.threat, **settings) for name, settings in names.items()]


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
