"""Attacks on some samples of a batch, to compare their successes."""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_flatness.attacks._noise import DrawnSeeds
from lightning_flatness.attacks._oracle import usable
from lightning_flatness.attacks._probes import Signal
from lightning_flatness.attacks._session import Session
from lightning_flatness.attacks.losses import AttackLoss, cross_entropy
from lightning_flatness.attacks.pgd import decaying_steps, run_pgd
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._numerics import wide

_UNBOUNDED_STEPS = 10
_FALL = 0.95
"""The loss fell where it is below this share of what it was: less may be rounding of bf16."""


def plain_attack(whole: Session, num_steps: int) -> Signal:
    """PGD on the cross-entropy, and in how many of its steps the loss fell."""
    falls = steps = whole.loss.new_zeros(())
    run = whole.start(cross_entropy, 0)
    seen, _ = run.look()
    for taken, size in enumerate(decaying_steps(whole.ball.epsilon, num_steps), start=1):
        if seen is None:
            break
        assert seen.gradient is not None
        before = seen.loss
        run.move(run.ball.project(run.ball.step(run.x, seen.gradient, size)))
        seen, stays = run.look(gradient=taken < num_steps)
        steps = steps + len(before)
        if seen is not None:
            falls = falls + (seen.loss < _FALL * (before if stays is None else before[stays])).sum()
    run.close()
    return Signal(wide(falls), wide(steps))


def fooled(
    whole: Session,
    rows: Int[Tensor, " rows"],
    threat: ThreatModel,
    attack: Callable[[Session], None],
    temperature: Tensor | float = 1.0,
) -> Bool[Tensor, " rows"]:
    """Attack some of the samples, each with its own seed, by the logits divided by ``temperature``."""
    logits_fn = whole.oracle.logits_fn
    part = Session(
        logits_fn if isinstance(temperature, float) else lambda inputs: logits_fn(inputs) / temperature,
        whole.inputs[rows],
        whole.target[rows],
        threat,
        DrawnSeeds(whole.seeds[rows]),
        whole.clean_logits[rows],
        whole.options,
    )
    attack(part)
    whole.oracle.forwards += part.oracle.forwards
    whole.oracle.backwards += part.oracle.backwards
    return part.success


def climb(objective: AttackLoss, steps: int, session: Session) -> None:
    run_pgd(session, objective, decaying_steps(session.ball.epsilon, steps), 0)


def climb_far(session: Session) -> None:
    """No random start, which alone fools many; steps of one size reach what large first steps jump over."""
    run_pgd(session, cross_entropy, decaying_steps(session.ball.epsilon, _UNBOUNDED_STEPS), None)
    run_pgd(session, cross_entropy, [session.ball.epsilon * 0.25] * _UNBOUNDED_STEPS, None)


def transferred(
    whole: Session, threat: ThreatModel, rows: Int[Tensor, " rows"], earlier: Float[Tensor, "batch *shape"]
) -> Bool[Tensor, " rows"]:
    if not len(rows):
        return whole.success[rows]
    logits = whole.oracle.logits(threat.project(earlier.detach().clone()[rows], whole.inputs[rows]))
    return usable(logits) & (logits.argmax(1) != whole.target[rows])


def unbounded_threat(whole: Session, threat: ThreatModel) -> ThreatModel:
    """Ball around each input that holds every valid one; where no range is valid, those that the batch spans.

    Without that limit, first steps would end where no data are, so far out that the loss of the true class is 0.
    """
    data = threat.in_data_units(whole.inputs)
    lowest, highest = float(data.amin()), float(data.amax())
    if lowest < highest:
        lower = lowest if threat.lower is None else threat.lower
        upper = highest if threat.upper is None else threat.upper
        threat = replace(threat, lower=lower, upper=upper)
    low, high = threat.value_range(whole.inputs)
    reach = float(((high - low).nan_to_num(0, 0, 0) * whole.ball.scale).amax())
    return replace(threat, epsilon=reach * (whole.inputs[0].numel() ** 0.5 if threat.norm == "l2" else 1.0))
