"""Trajectories: flatness, loss and confidence at every point of an attack, or of another way through input space."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._paths import PATHS, Start
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks._trajectory_recorder import TrajectoryRecorder
from lightning_flatness.attacks.losses import AttackLoss
from lightning_flatness.attacks.losses import LossName as AttackLossName
from lightning_flatness.attacks.pgd import pgd
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._checks import check_counts
from lightning_flatness.functional.losses import LogitLoss, LossFunction, LossName, resolve_loss
from lightning_flatness.functional.trajectory import TrajectoryPoints

PathName = Literal["attack", "noise", "image", "random", "gaussian_noise", "blur", "contrast", "brightness"]

_STEP_SHARE = 2.5
"""Steps of an attack add up to so many epsilons, as in Madry et al., ICLR 2018."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Trajectories of a batch.

    Args:
        positions: of the points: gradient steps taken, part of the straight line, or severity; 0 is the clean input.
        rows: samples of the batch that are classified right without a perturbation, the only ones followed.
        points: quantities of those samples at each point.
        forwards: samples that went through the model, all forward passes together.
        backwards: samples that a gradient was computed for.
    """

    positions: tuple[float, ...]
    rows: Int[Tensor, " batch"]
    points: TrajectoryPoints
    forwards: int
    backwards: int


def trajectory(
    logits_fn: LogitsFunction,
    head: nn.Module,
    inputs: Float[Tensor, "all *shape"],
    target: Shaped[Tensor, " all"],
    threat: ThreatModel,
    *,
    path: PathName = "attack",
    steps: int = 20,
    step_size: float | None = None,
    loss: AttackLossName | AttackLoss = "cross_entropy",
    flatness_loss: LossName | LogitLoss | nn.Module | LossFunction = "cross_entropy",
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "all classes"] | None = None,
) -> Trajectory:
    r"""Follow samples from the clean input along a path, and measure at every point.

    ====================  =================================================  =======================
    path                  point at position t                                positions
    ====================  =================================================  =======================
    ``attack``            iterate t of PGD from the clean input              0, 1, …, ``steps``
    ``noise``             ``(1 − t) x + t u``, u uniform in the valid range  0, 0.1, …, 1
    ``image``             ``(1 − t) x + t x'``, x' the next of the batch     0, 0.1, …, 1
    ``random``            ``x + t ε d``, d of norm 1, signs for linf         0, 0.1, …, 1
    ``gaussian_noise``    ``x + σ_t (upper − lower) n``, n standard normal   severities 0, 1, …, 5
    ``blur``              x convolved with a Gaussian of σ_t · side / 32     severities 0, 1, …, 5
    ``contrast``          ``m + c_t (x − m)``, m the mean of each channel    severities 0, 1, …, 5
    ``brightness``        ``x + b_t (upper − lower)``                        severities 0, 1, …, 5
    ====================  =================================================  =======================

    All points are cut by the valid range. The severities 1 to 5 are σ = 0.08, 0.12, 0.18, 0.26, 0.38 for the noise,
    σ = 0.4, 0.6, 0.7, 0.8, 1 pixels for the blur, c = 0.4, 0.3, 0.2, 0.1, 0.05 and b = 0.1, 0.2, 0.3, 0.4, 0.5.

    Fooled samples stay in the attack, since what comes after the flip is the point. Features and logits are those of
    the attack's own forward passes, and no image is kept: at any time there is one batch of them. Other paths take one
    forward pass per point. With a generator on the CPU, all paths but ``image`` do not depend on how a data set is
    split into batches, up to the rounding of the model.

    Args:
        logits_fn: maps inputs to logits, by a call of ``head`` on one row per sample.
        head: last layer of the model: an ``nn.Linear``, or another affine map of the features of each sample.
        inputs: clean inputs as the model sees them.
        target: true classes.
        threat: the ball and the valid range.
        path: which way.
        steps: gradient steps of the attack.
        step_size: length of every step in data units; None for 2.5 ε / ``steps``.
        loss: what the attack makes grow.
        flatness_loss: the training loss, whose relative flatness is measured.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already, which saves a forward pass.

    Returns:
        Quantities of the samples that are classified right without a perturbation.

    Raises:
        ValueError: if the path is unknown or cannot be gone, ``head`` is not affine or does not see one row per
            sample, or an argument is out of range, as for :func:`~lightning_flatness.attacks.pgd`.

    References:
        Walter et al., *The Uncanny Valley*, arXiv 2405.16918.
        Hendrycks and Dietterich, *Benchmarking neural network robustness to common corruptions*, ICLR 2019.

    Example:
        >>> head = torch.nn.Linear(2, 2, bias=False)
        >>> _ = head.load_state_dict({"weight": 10 * torch.eye(2)})
        >>> inputs, target = torch.tensor([[0.95, 0.5]]), torch.tensor([0])
        >>> found = trajectory(head, head, inputs, target, ThreatModel(epsilon=0.5), steps=4, step_size=0.1)
        >>> found.points.log_neuronwise.exp().squeeze(1).round()
        tensor([ 3., 15., 49., 32.,  6.], dtype=torch.float64)
        >>> found.points.flipped.squeeze(1)
        tensor([False, False, False,  True,  True])
    """
    path = check_path(path)
    recorder = TrajectoryRecorder(logits_fn, head, threat, inputs, target, resolve_loss(flatness_loss))
    if path == "attack":
        result = pgd(
            recorder,
            inputs,
            target,
            threat,
            steps=steps,
            step_size=_STEP_SHARE * threat.largest_epsilon / max(1, steps) if step_size is None else step_size,
            random_start=False,
            loss=loss,
            generator=generator,
            clean_logits=clean_logits,
            stop_when_fooled=False,
            on_point=recorder.visit,
        )
        rows, passes = result.initially_correct.nonzero().squeeze(1), (result.forwards, result.backwards)
    else:
        with torch.inference_mode(mode=False), torch.enable_grad():
            options = Options(stop_when_fooled=False)
            session = Session(recorder, inputs, target, threat, generator, clean_logits, options)
            rows = _follow(session, path, threat, recorder)
        passes = session.oracle.forwards, 0
    positions = _positions(path, steps)
    return Trajectory(positions, rows, recorder.points(len(positions)), *passes)


def path_positions(path: PathName, steps: int) -> tuple[float, ...]:
    """Positions of the points of a path.

    Args:
        path: which way.
        steps: gradient steps of the attack.

    Returns:
        Positions, 0 first.

    Raises:
        ValueError: if the path is unknown, or ``steps`` < 1.

    Example:
        >>> path_positions("attack", 3)
        (0.0, 1.0, 2.0, 3.0)
    """
    check_counts(steps=steps)
    return _positions(check_path(path), steps)


def check_path(path: str) -> PathName:
    """Return ``path``, or raise ``ValueError`` where there is none of that name."""
    if path not in get_args(PathName):
        raise ValueError(
            f"`path` must be 'attack' (PGD, whose steps can be seen) or one of "
            f"{', '.join(get_args(PathName)[1:])}, got {path!r}."
        )
    return cast(PathName, path)


def _positions(path: PathName, steps: int) -> tuple[float, ...]:
    return tuple(map(float, range(steps + 1))) if path == "attack" else PATHS[path].positions


def _follow(session: Session, name: str, threat: ThreatModel, recorder: TrajectoryRecorder) -> Int[Tensor, " batch"]:
    rows = session.standing()
    lower, upper = threat.value_range(session.inputs)
    other = session.inputs.roll(-1, 0)[rows]
    start = Start(session.ball.take(rows), other, session.seeds[rows], lower, upper)
    path = PATHS[name]
    path.check(name, start)
    if len(rows):
        for step, position in enumerate(path.positions):
            x = path.at(start, position)
            session.oracle.logits(x)
            recorder.visit(rows, x, step)
    return rows
