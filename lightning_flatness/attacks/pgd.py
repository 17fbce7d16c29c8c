"""Projected gradient descent that costs no pass more than it needs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._path import PathRecorder, PointObserver
from lightning_flatness.attacks._session import Options, Run, Session
from lightning_flatness.attacks.losses import AttackLoss, LossName, resolve_attack_loss
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._checks import check_counts

_FIRST_STEP, _LAST_STEP = 2.0, 0.25
"""First and last step of the decaying schedule, in epsilons."""


def pgd(
    logits_fn: LogitsFunction,
    inputs: Float[Tensor, "batch *shape"],
    target: Shaped[Tensor, " batch"],
    threat: ThreatModel,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: LossName | AttackLoss = "cross_entropy",
    keep_path: bool = False,
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "batch classes"] | None = None,
    stop_when_fooled: bool = True,
    autocast_dtype: torch.dtype | None = None,
    on_point: PointObserver | None = None,
) -> AttackResult:
    """Projected gradient descent: steps up the loss, each projected onto the ball and into the valid range.

    Samples that are wrong without an attack are left alone, and samples leave the batch as soon as they are fooled;
    each forward pass serves both as the test of the last step and for the gradient of the next. A sample's random
    start comes from its own seed, drawn from ``generator``; with a generator on the CPU, results do not depend on how
    a data set is split into batches, up to the rounding of the model.

    Works under ``no_grad`` and ``inference_mode``; touches neither parameters, their gradients and modes nor global
    random number generators.

    Args:
        logits_fn: maps inputs to logits, shape ``(batch, classes)``: usually the model, in evaluation mode.
        inputs: clean inputs as the model sees them.
        target: true classes.
        threat: the ball and the valid range.
        steps: gradient steps per restart.
        step_size: length of every step in data units; None for steps that decay geometrically from 2 ``epsilon`` to
            ``epsilon / 4``, stronger at the same cost where the model is robust.
        restarts: runs from different random starts; each attacks what the ones before left.
        random_start: start from a random point of the ball instead of the clean input.
        loss: what grows: a name, or a function of ``(logits, target)`` that returns one value per sample.
        keep_path: record the iterates of the first run, at most 65.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already, which saves a forward pass.
        stop_when_fooled: let fooled samples go; if False, all steps are taken, for the whole path and largest loss.
        autocast_dtype: run the passes in this dtype, ``torch.bfloat16`` for example, and check each claimed success
            with ``logits_fn`` as it is; the perturbation stays in float32.
        on_point: called right after each call of the model but the clean one, with the rows of the batch that were
            in it, their perturbed inputs and the number of gradient steps so far.

    Returns:
        Perturbed inputs, successes and counts.

    Raises:
        ValueError: if an argument is out of range, inputs lie outside the valid range, targets are no classes, or
            ``logits_fn`` does not return differentiable logits.

    References:
        Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> inputs, target = torch.tensor([[0.6, 0.5], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 0])
        >>> result = pgd(model, inputs, target, ThreatModel(epsilon=0.1))
        >>> result.success, result.initially_correct
        (tensor([ True, False, False]), tensor([ True,  True, False]))
    """
    _check_budget(steps, step_size, restarts, random_start=random_start)
    objective = resolve_attack_loss(loss)
    with torch.inference_mode(mode=False), torch.enable_grad():
        options = Options(autocast_dtype, stop_when_fooled, on_point)
        session = Session(logits_fn, inputs, target, threat, generator, clean_logits, options)
        if keep_path:
            session.path = PathRecorder(session.inputs, steps)
        sizes = decaying_steps(session.ball.epsilon, steps) if step_size is None else [step_size] * steps
        for restart in range(restarts):
            run_pgd(session, objective, sizes, restart if random_start else None)
        return session.result()


def run_pgd(session: Session, objective: AttackLoss, sizes: Sequence[Tensor | float], stream: int | None) -> None:
    """Take steps of the given sizes (data units) with all samples that still stand.

    Args:
        session: the attack's record.
        objective: what is to grow.
        sizes: length of each step.
        stream: number of the random start; None to start at the clean input.
    """
    run = session.start(objective, stream)
    climb(run, sizes)
    run.finish()


def climb(run: Run, sizes: Sequence[Tensor | float]) -> None:
    """Take steps of the given sizes (data units) as long as a sample stands.

    Args:
        run: the samples, and what is to grow.
        sizes: length of each step.
    """
    for size in sizes:
        seen, _ = run.look()
        if seen is None:
            return
        assert seen.gradient is not None
        run.move(run.ball.project(run.ball.step(run.x, seen.gradient, size)))


def decaying_steps(epsilon: Tensor, steps: int, last: float = _LAST_STEP) -> list[Tensor]:
    """Step sizes from 2 ``epsilon`` down to ``last * epsilon``, each the same fraction of the one before.

    Args:
        epsilon: radius of the ball.
        steps: number of sizes.
        last: last size, in epsilons.

    Returns:
        Sizes in the units of ``epsilon``.
    """
    ratio = last / _FIRST_STEP
    return [epsilon * _FIRST_STEP * ratio ** (step / max(1, steps - 1)) for step in range(steps)]


def _check_budget(steps: int, step_size: float | None, restarts: int, *, random_start: bool) -> None:
    check_counts(steps=steps, restarts=restarts)
    if step_size is not None and not step_size > 0:
        raise ValueError(f"`step_size` must be > 0 or None, got {step_size}.")
    if restarts > 1 and not random_start:
        raise ValueError(f"`restarts` must be 1 without random_start, got {restarts}; runs would be equal.")
