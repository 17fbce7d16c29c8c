"""APGD: projected gradient descent with momentum that halves its steps where they stop to help.

The algorithm is that of Croce and Hein, *Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks*, ICML 2020 (Algorithm 1, with its constants).
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_flatness.attacks._oracle import Evaluation, LogitsFunction
from lightning_flatness.attacks._session import Options, Run, Session
from lightning_flatness.attacks._targeted_losses import resolve_targeted_loss
from lightning_flatness.attacks.losses import AttackLoss, LossName, resolve_attack_loss
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._checks import check_counts

_MOMENTUM = 0.75  # weight of the new step
_FIRST_SIZE = 2.0  # in epsilons
_RISES = 0.75  # steps are halved where a smaller share of them raised the loss
_FIRST_PERIOD, _SHORTEN, _SHORTEST = 0.22, 0.03, 0.06  # checkpoints, in shares of all steps


def apgd(
    logits_fn: LogitsFunction,
    inputs: Float[Tensor, "batch *shape"],
    target: Shaped[Tensor, " batch"],
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: LossName | AttackLoss = "cross_entropy",
    target_classes: int = 0,
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "batch classes"] | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> AttackResult:
    """Auto-PGD, untargeted or towards each of the likeliest other classes in turn.

    What :func:`~lightning_flatness.attacks.pgd` says of batches, random numbers and contexts holds here too.

    Args:
        logits_fn: maps inputs to logits, shape ``(batch, classes)``.
        inputs: clean inputs as the model sees them.
        target: true classes.
        threat: the ball and the valid range.
        steps: gradient steps per run.
        restarts: runs from different random starts (per target class); each attacks what the ones before left.
        loss: what grows: a name, or, untargeted, a function of ``(logits, target)``.
        target_classes: number of other classes to aim at, those with the largest clean logits; 0 for untargeted.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already.
        autocast_dtype: as for :func:`~lightning_flatness.attacks.pgd`.

    Returns:
        Perturbed inputs, successes and counts.

    Raises:
        ValueError: as for :func:`~lightning_flatness.attacks.pgd`.

    References:
        Croce and Hein, *Reliable evaluation of adversarial robustness*, ICML 2020.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> inputs, target = torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> apgd(model, inputs, target, ThreatModel(epsilon=0.1), steps=10).success
        tensor([ True, False])
    """
    _check_budget(steps, restarts, target_classes)
    if target_classes and not isinstance(loss, str):
        raise ValueError(f"`loss` must be a name with target_classes={target_classes}, got {type(loss).__name__}.")
    with torch.inference_mode(mode=False), torch.enable_grad():
        options = Options(autocast_dtype)
        session = Session(logits_fn, inputs, target, threat, generator, clean_logits, options)
        if target_classes and isinstance(loss, str):
            run_targeted_apgd(session, loss, target_classes, steps, restarts)
        else:
            for restart in range(restarts):
                run_apgd(session.start(resolve_attack_loss(loss), restart), steps)
        return session.result()


def run_targeted_apgd(
    session: Session, loss: LossName, target_classes: int, steps: int, restarts: int = 1, stream: int = 0
) -> None:
    """Aim at the other classes with the largest clean logits, one after the other.

    Args:
        session: the attack's record.
        loss: name of the loss.
        target_classes: most classes to aim at.
        steps: gradient steps per class.
        restarts: random starts per class.
        stream: number of the first random start.
    """
    objective = resolve_targeted_loss(loss)
    for rank in range(min(target_classes, session.clean_logits.shape[1] - 1)):
        for restart in range(restarts):
            run_apgd(session.start_targeted(objective, rank, stream + rank * restarts + restart), steps)


def run_apgd(run: Run, steps: int) -> None:
    """Take ``steps`` steps with the samples of ``run`` and write down what is found.

    Args:
        run: where to start, and what is to grow.
        steps: gradient steps.
    """
    seen, _ = run.look()
    if seen is not None:
        state = _State.at_start(run, seen)
        checkpoints = _checkpoints(steps)
        for step in range(steps):
            state = _move(run, state, _MOMENTUM if step else 1.0)
            seen, stays = run.look(gradient=step + 1 < steps)
            if seen is None or seen.gradient is None:
                break
            state = (state if stays is None else state.take(stays)).after(run, seen)
            if step + 1 in checkpoints:
                state = _check(run, state, checkpoints[step + 1])
    run.close()


@dataclass(frozen=True, eq=False)
class _State:
    """What APGD remembers of each sample besides its place."""

    previous: Tensor  # iterate before the last step
    gradient: Tensor
    objective: Float[Tensor, " batch"]
    peak: Tensor  # iterate with the largest objective
    peak_gradient: Tensor
    peak_objective: Float[Tensor, " batch"]
    size: Float[Tensor, " batch"]  # of the steps, in epsilons
    rises: Float[Tensor, " batch"]  # steps since the last checkpoint that raised the objective
    checked_objective: Float[Tensor, " batch"]  # the peak's at the last checkpoint
    was_halved: Bool[Tensor, " batch"]

    @classmethod
    def at_start(cls, run: Run, seen: Evaluation) -> "_State":
        assert seen.gradient is not None
        value = _comparable(seen)
        return cls(
            previous=run.x,
            gradient=seen.gradient,
            objective=value,
            peak=run.x,
            peak_gradient=seen.gradient,
            peak_objective=value,
            size=torch.full_like(value, _FIRST_SIZE),
            rises=torch.zeros_like(value),
            checked_objective=value,
            was_halved=torch.ones_like(seen.fooled),
        )

    def take(self, stays: Int[Tensor, " stays"]) -> "_State":
        return _State(*(getattr(self, field.name)[stays] for field in fields(self)))

    def after(self, run: Run, seen: Evaluation) -> "_State":
        """Take in what a step has brought."""
        assert seen.gradient is not None
        value = _comparable(seen)
        higher = value > self.peak_objective
        wide_higher = run.ball.per_sample(higher)
        return replace(
            self,
            gradient=seen.gradient,
            objective=value,
            peak=torch.where(wide_higher, run.x, self.peak),
            peak_gradient=torch.where(wide_higher, seen.gradient, self.peak_gradient),
            peak_objective=torch.where(higher, value, self.peak_objective),
            rises=self.rises + (value > self.objective),
        )


def _move(run: Run, state: _State, momentum: float) -> _State:
    x, ball = run.x, run.ball
    ahead = ball.project(ball.step(x, state.gradient, ball.epsilon * ball.per_sample(state.size)))
    run.move(ball.project(x + momentum * (ahead - x) + (1 - momentum) * (x - state.previous)))
    return replace(state, previous=x)


def _check(run: Run, state: _State, period: int) -> _State:
    """Halve the steps, and go back to the peak, where too few steps helped or none has since the last checkpoint."""
    stalled = ~state.was_halved & (state.checked_objective >= state.peak_objective)
    halve = (state.rises <= _RISES * period) | stalled
    back = run.ball.per_sample(halve)
    run.x = torch.where(back, state.peak, run.x)
    return replace(
        state,
        gradient=torch.where(back, state.peak_gradient, state.gradient),
        size=torch.where(halve, state.size / 2, state.size),
        rises=torch.zeros_like(state.rises),
        checked_objective=state.peak_objective,
        was_halved=halve,
    )


def _checkpoints(steps: int) -> dict[int, int]:
    """Number of steps taken at each checkpoint, and since the one before."""
    period, shorten, shortest = (max(int(share * steps), 1) for share in (_FIRST_PERIOD, _SHORTEN, _SHORTEST))
    periods: dict[int, int] = {}
    taken = period
    while taken <= steps:
        periods[taken] = period
        period = max(period - shorten, shortest)
        taken += period
    return periods


def _comparable(seen: Evaluation) -> Float[Tensor, " batch"]:
    return torch.where(seen.finite, seen.objective, -torch.inf)


def _check_budget(steps: int, restarts: int, target_classes: int) -> None:
    check_counts(steps=steps, restarts=restarts)
    if target_classes < 0:
        raise ValueError(f"`target_classes` must be >= 0, got {target_classes}.")
