"""Robust accuracy over many epsilons from one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_flatness.attacks._noise import DrawnSeeds
from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._checks import check_epsilons


@runtime_checkable
class Attack(Protocol):
    """What is called like :class:`~lightning_flatness.attacks.AdaptiveAttack`."""

    def __call__(
        self,
        logits_fn: LogitsFunction,
        inputs: Tensor,
        target: Tensor,
        /,
        *,
        generator: torch.Generator | None,
        clean_logits: Tensor | None,
    ) -> AttackResult:
        """Attack a batch."""


@dataclass(frozen=True, eq=False)
class EpsilonCurveResult:
    """Smallest epsilon that fools each sample.

    Args:
        index: of that epsilon in the list; the list's length where none fools, also where the clean input was wrong.
        initially_correct: classified as ``target`` without an attack.
        forwards: samples that went through the model, all forward passes together.
        backwards: samples that a gradient was computed for.
    """

    index: Int[Tensor, " batch"]
    initially_correct: Bool[Tensor, " batch"]
    forwards: int
    backwards: int


def first_fooling_epsilon(
    attack_for: Callable[[ThreatModel], Attack],
    logits_fn: LogitsFunction,
    inputs: Float[Tensor, "batch *shape"],
    target: Shaped[Tensor, " batch"],
    threat: ThreatModel,
    epsilons: Sequence[float],
    *,
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "batch classes"] | None = None,
) -> EpsilonCurveResult:
    """Find the smallest of many epsilons at which each sample is fooled, by bisection.

    Balls are nested: who is fooled in one is fooled in every larger one. So each sample is attacked at the middle
    epsilon of those that may still be its first, about ``log2(len(epsilons) + 1)`` times instead of ``len(epsilons)``
    times; samples with the same middle are attacked together. With the strongest possible attack the result is exact.
    A real attack may fail in a ball though it succeeds in a smaller one; the curve then is, as that of any attack, an
    upper bound of the robust accuracy, and may differ from attacks at every epsilon by such samples.

    A sample has the same seed at every epsilon, drawn from ``generator`` as a single attack draws it: what
    :func:`~lightning_flatness.attacks.pgd` says of batches, random numbers and contexts holds here too.

    Args:
        attack_for: makes the attack for a threat model: ``AdaptiveAttack``, or
            ``lambda threat: functools.partial(pgd, threat=threat)``, for example.
        logits_fn: maps inputs to logits, shape ``(batch, classes)``.
        inputs: clean inputs as the model sees them.
        target: true classes.
        threat: all of the threat model but its epsilon; where that is one per channel, the ratios between channels are
            kept, and ``epsilons`` are those of the largest channel.
        epsilons: radii in data units, in increasing order.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already.

    Returns:
        Index of the smallest fooling epsilon of each sample, and counts;
        :class:`~lightning_flatness.metrics.RobustAccuracyCurve` makes the curve of it.

    Raises:
        ValueError: if ``epsilons`` are not positive and increasing, all channels have epsilon 0, or the attack refuses
            its arguments.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> inputs, target = torch.tensor([[0.6, 0.5], [0.7, 0.3], [0.9, 0.1]]), torch.tensor([0, 0, 0])
        >>> from lightning_flatness.attacks import AdaptiveAttack
        >>> first_fooling_epsilon(AdaptiveAttack, model, inputs, target, ThreatModel(), [0.1, 0.2, 0.3]).index
        tensor([0, 2, 3])
    """
    check_epsilons(epsilons)
    attacks = [attack_for(_with_epsilon(threat, epsilon)) for epsilon in epsilons]
    with torch.inference_mode(mode=False), torch.enable_grad():
        session = Session(logits_fn, inputs, target, threat, generator, clean_logits, Options())
        search = _Bisection(session, logits_fn, attacks)
        search.run(session.initially_correct.nonzero().squeeze(1), 0, len(attacks))
    return EpsilonCurveResult(search.index, session.initially_correct, search.forwards, search.backwards)


class _Bisection:
    """Attacks on parts of a batch.

    Args:
        session: the batch, with the clean logits and the seeds of all attacks.
        logits_fn: maps inputs to logits.
        attacks: one per epsilon, from small to large.
    """

    def __init__(self, session: Session, logits_fn: LogitsFunction, attacks: Sequence[Attack]) -> None:
        self.index = torch.full_like(session.target, len(attacks))
        self.forwards, self.backwards = session.oracle.forwards, 0
        self._session = session
        self._logits_fn = logits_fn
        self._attacks = attacks

    def run(self, rows: Int[Tensor, " rows"], low: int, high: int) -> None:
        """Find the index of each of ``rows``, known to be in [low, high]."""
        if not len(rows):
            return
        if low == high:
            self.index[rows] = low
            return
        middle = (low + high) // 2
        fooled = self._fooled(self._attacks[middle], rows)
        self.run(rows[fooled], low, middle)
        self.run(rows[~fooled], middle + 1, high)

    def _fooled(self, attack: Attack, rows: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        session = self._session
        result = attack(
            self._logits_fn,
            session.inputs[rows],
            session.target[rows],
            generator=DrawnSeeds(session.seeds[rows]),
            clean_logits=session.clean_logits[rows],
        )
        self.forwards += result.forwards
        self.backwards += result.backwards
        return result.success


def _with_epsilon(threat: ThreatModel, epsilon: float) -> ThreatModel:
    if not isinstance(threat.epsilon, Sequence):
        return replace(threat, epsilon=epsilon)
    largest = threat.largest_epsilon
    if largest == 0:
        raise ValueError(f"`threat` must let some channel change, got epsilon={threat.epsilon}.")
    return replace(threat, epsilon=tuple(epsilon * (channel / largest) for channel in threat.epsilon))
