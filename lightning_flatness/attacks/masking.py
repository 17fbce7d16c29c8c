"""Does a model resist attacks, or only hide its gradient from them? Cheap tests on a few samples.

What they find is judged by :func:`~lightning_flatness.attacks.masking_reasons`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._probes import PROBES, Signal, probe
from lightning_flatness.attacks._random_search import run_random_search
from lightning_flatness.attacks._session import Options, Session
from lightning_flatness.attacks._subset_attacks import (
    climb,
    climb_far,
    fooled,
    plain_attack,
    transferred,
    unbounded_threat,
)
from lightning_flatness.attacks.losses import cross_entropy, margin
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._numerics import wide

_STEPS = 5
"""Gradient steps of the attacks of every epoch."""
_THOROUGH_STEPS = 20
_QUERIES = 300
_LOG_2 = 0.6931
"""A larger cross-entropy leaves the true class less than half of the probability: its gradient is not saturated."""

_ATTACKS = ("loss_decrease_rate", "success_rate", "loss_gap", "unbounded_survival")
_THOROUGH = ("temperature_gap", "black_box_gap")


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
    ``zero_gradient_rate``       the cross-entropy's input gradient, taken as it comes, is exactly 0
    ``gradient_underflow``       share of that gradient's elements that are 0, but not where the loss is 1024 times it
    ``loss_underflow_rate``      the cross-entropy is exactly 0; also where an honest model is very confident
    ``probabilities``            the outputs are probabilities, not logits
    ``randomness``               largest change of a logit in a second pass, as a share of the largest logit
    ``gradient_alignment``       cosine of the gradients at the input and at a random point within ``epsilon / 10``
    ``directional_correlation``  cosine of the changes of the logits over two such steps, and of what gradients predict
    ``loss_decrease_rate``       the loss falls, by more than 5 %, in a step of the plain attack (mean over its steps)
    ``success_rate``             fooled by the plain attack: PGD with 5 steps on the cross-entropy
    ``loss_gap``                 fooled by the same attack on the margin, but not by the plain one, though the true
                                 class had more than half of the probability
    ``unbounded_survival``       fooled neither by the plain attack nor by PGD that may reach every valid input
    ``transfer_gap``             fooled by ``earlier``, but not by the plain attack; only with ``earlier``
    ``temperature_gap``          fooled by PGD on the logits divided by their median lead, but not by the plain attack,
                                 here with 20 more steps; only with ``thorough``
    ``black_box_gap``            fooled by 300 queries of random search, but by no attack above, nor by 20 steps on the
                                 margin; only with ``thorough``
    ===========================  ===================================================================================

    Where the logits of a batch are all the same, a dead network's, no sample counts; where all predictions are, none
    counts for ``unbounded_survival``, since there may be no valid input of another class. Without a valid range, that
    attack may reach all values between the batch's smallest and its largest. Otherwise sums do not depend on how a data
    set is split into batches, up to the rounding of the model, but for what only ``thorough`` measures. What
    :func:`~lightning_flatness.attacks.pgd` says of random numbers and contexts holds here too.

    Changes of the logits that may be rounding do not count for ``directional_correlation``. Half precision is known by
    the digits of the logits or of the input gradient; between a normalisation and a head in float32 it stays unseen.

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
                signals["transfer_gap"] = _share(whole, transferred(whole, threat, standing, earlier))
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
    signals["loss_decrease_rate"] = plain_attack(whole, _STEPS)
    signals["success_rate"] = _share(whole, whole.success)
    standing = whole.standing()
    confident = cross_entropy(whole.clean_logits, whole.target)[standing] < _LOG_2
    by_margin = fooled(whole, standing, threat, partial(climb, margin, _STEPS))
    signals["loss_gap"] = _share(whole, by_margin & confident)
    unbounded = fooled(whole, standing, unbounded_threat(whole, threat), climb_far)
    predictions = whole.clean_logits.argmax(1)
    reachable = (predictions != predictions[:1]).any()  # a valid input of another class
    survival = _share(whole, ~unbounded)
    signals["unbounded_survival"] = Signal(survival.sum * reachable, survival.count * reachable)
    return signals


def _thorough(whole: Session, threat: ThreatModel, standing: Int[Tensor, " rows"]) -> dict[str, Signal]:
    strong = partial(climb, cross_entropy, _THOROUGH_STEPS)
    standing = standing[~fooled(whole, standing, threat, strong)]
    lead = -margin(whole.clean_logits, whole.target)[whole.initially_correct]
    softened = fooled(whole, standing, threat, strong, temperature=lead.median().clamp(min=1))
    # The cross-entropy alone is a poor guide where all classes are about as likely, as early in a training.
    hard = standing[~softened]
    hard = hard[~fooled(whole, hard, threat, partial(climb, margin, _THOROUGH_STEPS))]
    searched = fooled(whole, hard, threat, partial(run_random_search, norm=threat.norm, queries=_QUERIES))
    return {"temperature_gap": _share(whole, softened), "black_box_gap": _share(whole, searched)}


def _share(whole: Session, found: Bool[Tensor, " rows"]) -> Signal:
    """Number of samples ``found`` in shares of the initially correct samples."""
    return Signal(wide(found).sum(), wide(whole.initially_correct).sum())
