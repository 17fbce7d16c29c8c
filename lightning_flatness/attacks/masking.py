"""Does a model resist attacks, or only hide its gradient from them? Cheap tests on a few samples.

What they find is judged by :func:`~lightning_flatness.attacks.masking_reasons`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_flatness.attacks._noise import DrawnSeeds
from lightning_flatness.attacks._oracle import LogitsFunction, usable
from lightning_flatness.attacks._probes import PROBES, Signal, probe
from lightning_flatness.attacks._random_search import run_random_search
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks.losses import AttackLoss, cross_entropy, margin
from lightning_flatness.attacks.pgd import decaying_steps, run_pgd
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._numerics import wide

_STEPS = 5
"""Gradient steps of the attacks of every epoch."""
_THOROUGH_STEPS = 20
_QUERIES = 300
_LARGER_STEPS = 5
_LARGER = 4.0
"""The larger ball's radius, in epsilons: at twice epsilon, few more samples of a robust model fall."""
_UNBOUNDED_STEPS = 10
_LOG_2 = 0.6931
"""A larger cross-entropy leaves the true class less than half of the probability: its gradient is not saturated."""

_ATTACKS = ("loss_decrease_rate", "success_rate", "loss_gap", "epsilon_gain")
_THOROUGH = ("temperature_gap", "black_box_gap", "unbounded_survival")


@dataclass(frozen=True, eq=False)
class MaskingDiagnosis:
    """What was seen of a batch.

    Args:
        signals: by name, always the same names for the same arguments.
        x_adv: what the plain attack on the cross-entropy made of the inputs; the next epochs' ``earlier``.
        forwards: samples that went through the model, all forward passes together.
        backwards: samples that a gradient was computed for.
    """

    signals: dict[str, Signal]
    x_adv: Float[Tensor, "batch *shape"]
    forwards: int
    backwards: int


def masking_signals(
    logits_fn: LogitsFunction,
    inputs: Float[Tensor, "batch *shape"],
    target: Shaped[Tensor, " batch"],
    threat: ThreatModel,
    *,
    generator: torch.Generator | None = None,
    clean_logits: Float[Tensor, "batch classes"] | None = None,
    thorough: bool = False,
    earlier: Float[Tensor, "batch *shape"] | None = None,
) -> MaskingDiagnosis:
    """Measure what tells gradient masking from robustness, on the initially correct samples of a batch.

    ===========================  ===================================================================================
    signal                       mean over the samples
    ===========================  ===================================================================================
    ``zero_gradient_rate``       the cross-entropy's input gradient is exactly 0 (no rescaling, unlike in our attacks)
    ``loss_underflow_rate``      the cross-entropy is exactly 0; also where an honest model is very confident
    ``probabilities``            the outputs are probabilities, not logits
    ``randomness``               largest change of a logit in a second pass, as a share of the largest logit
    ``gradient_alignment``       cosine of the gradients at the input and at a random point within ``epsilon / 10``
    ``directional_correlation``  cosine of the changes of the logits over two such steps, and of what gradients predict
    ``loss_decrease_rate``       the loss falls in a step of the plain attack (mean over its steps)
    ``success_rate``             fooled by the plain attack: PGD with 5 steps on the cross-entropy
    ``loss_gap``                 fooled by the same attack on the margin, but not by the plain one
    ``epsilon_gain``             fooled with 4 ``epsilon``, among those that the plain attack did not fool
    ``transfer_gap``             fooled by ``earlier``, but not by the plain attack; only with ``earlier``
    ``temperature_gap``          fooled once the logits are divided by the median lead, but not by the plain attack,
                                 here with 20 more steps; only with ``thorough``
    ``black_box_gap``            fooled by 300 queries of random search, but not by that attack; only with ``thorough``
    ``unbounded_survival``       not fooled by PGD that may reach every valid input; only with ``thorough``
    ===========================  ===================================================================================

    A batch whose logits do not depend on the input at all, a dead network's, counts no sample. What
    :func:`~lightning_flatness.attacks.pgd` says of batches, random numbers and contexts holds here too.

    Args:
        logits_fn: maps inputs to logits, shape ``(batch, classes)``: usually the model, in evaluation mode.
        inputs: clean inputs as the model sees them; about 100 are enough, at every epoch the same.
        target: true classes.
        threat: the ball and the valid range.
        generator: source of one seed per sample; None for one seeded with 0.
        clean_logits: outputs for ``inputs`` where they are known already.
        thorough: run the tests that cost most and tell most: about 400 more passes per sample that stands.
        earlier: ``x_adv`` of these inputs from an earlier epoch.

    Returns:
        Signals that add up over batches and processes, the plain attack's inputs, and counts.

    Raises:
        ValueError: as for :func:`~lightning_flatness.attacks.pgd`, or if ``earlier`` has another shape than ``inputs``.

    References:
        Athalye et al., *Obfuscated Gradients Give a False Sense of Security*, ICML 2018. Carlini et al., *On Evaluating
        Adversarial Robustness*, 2019. Andriushchenko and Flammarion, *Understanding and Improving Fast Adversarial
        Training*, NeurIPS 2020 (gradient alignment).

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": 1000 * torch.eye(2), "bias": torch.zeros(2)})
        >>> inputs, target = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.3]]), torch.tensor([0, 0, 1])
        >>> signals = masking_signals(model, inputs, target, ThreatModel(epsilon=0.2)).signals
        >>> [round(signals[name].mean().item(), 2) for name in ("zero_gradient_rate", "success_rate", "loss_gap")]
        [0.67, 0.33, 0.33]
    """
    if earlier is not None and earlier.shape != inputs.shape:
        raise ValueError(
            f"`earlier` must have the shape of `inputs` {tuple(inputs.shape)}, got {tuple(earlier.shape)}."
        )
    with torch.inference_mode(mode=False), torch.enable_grad():
        whole = Session(logits_fn, inputs, target, threat, generator, clean_logits, Options())
        names = PROBES + _ATTACKS + ("transfer_gap",) * (earlier is not None) + _THOROUGH * thorough
        signals = dict.fromkeys(names, Signal.of(whole.loss[:0]))
        if _tells_something(whole):
            signals |= _every_epoch(whole, threat)
            standing = whole.standing()
            if earlier is not None:
                signals["transfer_gap"] = _share(whole, _transferred(whole, threat, standing, earlier))
            if thorough:
                signals |= _thorough(whole, threat, standing)
        return MaskingDiagnosis(signals, whole.x_adv, whole.oracle.forwards, whole.oracle.backwards)


def _tells_something(whole: Session) -> bool:
    """Whether a sample is correct and, as far as the batch can show, logits depend on the input."""
    logits = whole.clean_logits
    depends = (logits != logits[:1]).any() | (len(logits) == 1)
    return bool((whole.initially_correct & depends).any())


def _every_epoch(whole: Session, threat: ThreatModel) -> dict[str, Signal]:
    correct = whole.standing()
    signals = probe(whole.oracle, whole.ball.take(correct), whole.target[correct], whole.seeds[correct])
    signals["loss_decrease_rate"] = _plain_attack(whole)
    signals["success_rate"] = _share(whole, whole.success)
    standing = whole.standing()
    larger = _with_epsilon(threat, _LARGER)
    confident = cross_entropy(whole.clean_logits, whole.target)[standing] < _LOG_2
    by_margin = _fooled(whole, standing, threat, partial(_climb, margin, _STEPS))
    signals["loss_gap"] = _share(whole, by_margin & confident)
    signals["epsilon_gain"] = Signal.of(_fooled(whole, standing, larger, partial(_climb, cross_entropy, _LARGER_STEPS)))
    return signals


def _thorough(whole: Session, threat: ThreatModel, standing: Int[Tensor, " rows"]) -> dict[str, Signal]:
    climb = partial(_climb, cross_entropy, _THOROUGH_STEPS)
    standing = standing[~_fooled(whole, standing, threat, climb)]
    lead = -margin(whole.clean_logits, whole.target)[whole.initially_correct]
    softened = _fooled(whole, standing, threat, climb, temperature=lead.median().clamp(min=1))
    searched = _fooled(whole, standing, threat, partial(run_random_search, norm=threat.norm, queries=_QUERIES))
    unbounded = _fooled(whole, standing, _unbounded(whole, threat), _climb_far)
    predictions = whole.clean_logits.argmax(1)
    reachable = (predictions != predictions[:1]).any()  # a valid input of another class
    survival = _share(whole, ~unbounded)
    return {
        "temperature_gap": _share(whole, softened),
        "black_box_gap": _share(whole, searched),
        "unbounded_survival": Signal(survival.sum * reachable, survival.count * reachable),
    }


def _plain_attack(whole: Session) -> Signal:
    """PGD on the cross-entropy, and in how many of its steps the loss fell."""
    falls = steps = whole.loss.new_zeros(())
    run = whole.start(cross_entropy, 0)
    seen, _ = run.look()
    for size in decaying_steps(whole.ball.epsilon, _STEPS):
        if seen is None:
            break
        assert seen.gradient is not None
        before = seen.loss
        run.move(run.ball.project(run.ball.step(run.x, seen.gradient, size)))
        seen, stays = run.look()
        steps = steps + len(before)
        if seen is not None:
            falls = falls + (seen.loss < (before if stays is None else before[stays])).sum()
    run.close()
    return Signal(wide(falls), wide(steps))


def _fooled(
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


def _climb(objective: AttackLoss, steps: int, session: Session) -> None:
    run_pgd(session, objective, decaying_steps(session.ball.epsilon, steps), 0)


def _climb_far(session: Session) -> None:
    """No random start, which alone fools many; steps of one size reach what large first steps jump over."""
    run_pgd(session, cross_entropy, decaying_steps(session.ball.epsilon, _UNBOUNDED_STEPS), None)
    run_pgd(session, cross_entropy, [session.ball.epsilon * 0.25] * _UNBOUNDED_STEPS, None)


def _transferred(
    whole: Session, threat: ThreatModel, rows: Int[Tensor, " rows"], earlier: Float[Tensor, "batch *shape"]
) -> Bool[Tensor, " rows"]:
    if not len(rows):
        return whole.success[rows]
    logits = whole.oracle.logits(threat.project(earlier.detach().clone()[rows], whole.inputs[rows]))
    return usable(logits) & (logits.argmax(1) != whole.target[rows])


def _share(whole: Session, fooled: Bool[Tensor, " rows"]) -> Signal:
    """Number of ``fooled`` in shares of the initially correct samples."""
    return Signal(wide(fooled).sum(), wide(whole.initially_correct).sum())


def _with_epsilon(threat: ThreatModel, factor: float) -> ThreatModel:
    epsilon = threat.epsilon
    if isinstance(epsilon, Sequence):
        return replace(threat, epsilon=tuple(factor * channel for channel in epsilon))
    return replace(threat, epsilon=factor * epsilon)


def _unbounded(whole: Session, threat: ThreatModel) -> ThreatModel:
    """Ball around each input that holds every valid one; as wide as the batch where there is no valid range."""
    lower, upper = threat.value_range(whole.inputs)
    declared, seen = upper - lower, wide(whole.inputs.amax() - whole.inputs.amin())
    reach = float((torch.where(declared.isfinite(), declared, seen) * whole.ball.scale).amax())
    return replace(threat, epsilon=reach * (whole.inputs[0].numel() ** 0.5 if threat.norm == "l2" else 1.0))
