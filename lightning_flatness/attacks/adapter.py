"""Any attack of torchattacks behind one guard, which keeps it from harm and from false claims."""

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_flatness._isolation import left_as_found, own_random_numbers
from lightning_flatness.attacks._guard import GuardedModel, borrowed
from lightning_flatness.attacks._oracle import LogitsFunction
from lightning_flatness.attacks._recipe import Recipe, set_up
from lightning_flatness.attacks._session import Options, Run, Session
from lightning_flatness.attacks._unit_box import UnitBox
from lightning_flatness.attacks._zoo import ZOO, check_images, traits_of
from lightning_flatness.attacks.losses import cross_entropy
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel


def torchattacks_names() -> tuple[str, ...]:
    """Names that :func:`from_torchattacks` knows: all attacks of torchattacks that need no more than a model.

    ``LGV`` trains the model further on its training data, and ``MultiAttack`` is made of attacks, so that it can be
    passed as an instance only.

    Returns:
        Names in alphabetical order.

    Example:
        >>> torchattacks_names()[:3]
        ('APGD', 'APGDT', 'AutoAttack')
    """
    return tuple(sorted(ZOO))


def from_torchattacks(attack: Any, threat: ThreatModel, **kwargs: Any) -> "TorchattacksAttack":
    """Put an attack of torchattacks behind a guard, so that it is called like our own.

    Given by name or as a class, it gets ``eps`` and ``norm`` from ``threat``, ``alpha`` in its default ratio to
    ``eps``, ``n_classes`` from the logits (at most 10) and ``seed`` from the generator. All else keeps the defaults of
    torchattacks, which are often weak (``APGD`` takes 10 steps, not 100); only the parts of ``AutoAttack`` get their
    published 100 iterations and schedule. An instance, or what a factory makes, keeps its own settings.

    Whatever an attack claims, a sample counts as fooled only if the model says so of the returned input. What is NaN,
    outside the ball (of ``threat``, whatever ``eps`` the attack has) or outside the valid range is thrown away and
    recorded as ``AttackResult.rejected``. So minimal-norm attacks (``CW``, ``DeepFool``, ``EADL1``, ``JSMA``, ...),
    which know no ball, succeed where their result lies in it.

    Args:
        attack: a name of :func:`torchattacks_names`, a subclass or an instance of ``torchattacks.attack.Attack``, or a
            function that makes one for a given model.
        threat: the ball and the valid range, which torchattacks is shown as [0, 1].
        **kwargs: arguments of the class; distances are shares of the valid range.

    Returns:
        What is called with ``(logits_fn, inputs, target, generator)``.

    Raises:
        ValueError: if name or arguments are unknown, the attack's norm is not that of ``threat``, or ``threat`` has no
            valid range or one that is not linear for the attack.
        ImportError: if torchattacks is missing or older than 3.5.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
        >>> attack = from_torchattacks("PGD", ThreatModel(epsilon=0.1), steps=5)
        >>> attack(model, torch.tensor([[0.6, 0.5], [0.9, 0.1]]), torch.tensor([0, 0])).success
        tensor([ True, False])
    """
    return TorchattacksAttack(Recipe(attack, threat, kwargs), threat)


class TorchattacksAttack:
    """An attack of torchattacks behind the guard; made by :func:`from_torchattacks`.

    Attributes:
        name: of the attack.
        threat: the ball and the valid range.
    """

    def __init__(self, recipe: Recipe, threat: ThreatModel) -> None:
        self.name = recipe.name
        self.threat = threat
        self._recipe = recipe

    def __repr__(self) -> str:
        arguments = "".join(f", {key}={value!r}" for key, value in self._recipe.arguments.items())
        return f"from_torchattacks({self.name!r}, {self.threat}{arguments})"

    def __call__(
        self,
        logits_fn: LogitsFunction,
        inputs: Float[Tensor, "batch *shape"],
        target: Shaped[Tensor, " batch"],
        generator: torch.Generator | None = None,
        *,
        clean_logits: Float[Tensor, "batch classes"] | None = None,
    ) -> AttackResult:
        """Attack the samples that are right without an attack, all of them together.

        Works under ``no_grad`` and ``inference_mode``, in any floating-point dtype and memory format. Neither the
        module's modes, parameters and their gradients nor global random numbers are changed, whatever happens; the
        modes hold during the attack too.

        Args:
            logits_fn: maps inputs to logits, shape ``(batch, classes)``: usually the model, in evaluation mode.
            inputs: clean inputs as the model sees them.
            target: true classes.
            generator: source of the seed of all random numbers; None for one seeded with 0.
            clean_logits: outputs for ``inputs`` where they are known already.

        Returns:
            Perturbed inputs, successes and counts; ``steps_to_fool`` is -1, since torchattacks does not say.

        Raises:
            ValueError: as for :func:`~lightning_flatness.attacks.pgd`, or if the attack cannot work on such inputs.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            session = Session(logits_fn, inputs, target, self.threat, generator, clean_logits, Options())
            self.run(session)
            return session.result()

    def check(
        self,
        logits_fn: LogitsFunction,
        inputs: Float[Tensor, "batch *shape"],
        target: Shaped[Tensor, " batch"],
    ) -> None:
        """Try the attack on two samples with as few steps as it can take.

        Args:
            logits_fn: maps inputs to logits.
            inputs: clean inputs as the model sees them.
            target: classes.

        Raises:
            ValueError: if the attack cannot work on such inputs.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            options, few = Options(), inputs[:2]
            logits = Session(logits_fn, few, target[:2], self.threat, None, None, options).clean_logits
            # An untrained model may be wrong everywhere, and wrong samples are not attacked.
            session = Session(logits_fn, few, logits.argmax(1), self.threat, None, logits, options)
            try:
                self.run(session, fewest=True)
            except Exception as error:
                raise ValueError(f"{self.name} cannot attack inputs of shape {tuple(inputs.shape)}: {error}") from error

    def run(self, session: Session, *, fewest: bool = False) -> None:
        """Attack the samples that still stand, and write down what holds of the attack's claims.

        Args:
            session: the record.
            fewest: take as few steps as the attack can.
        """
        rows = session.standing()
        if not len(rows) or not bool((session.ball.epsilon > 0).any()):
            return
        box, device = UnitBox(self.threat, session.ball.take(rows)), session.inputs.device
        model = GuardedModel(session.oracle, box, device)
        num_classes, seed = session.clean_logits.shape[1], int(session.seeds[0]) % 2**32
        with left_as_found(session.oracle.logits_fn), own_random_numbers(seed, device):
            attack = self._recipe.make(model, num_classes, seed)
            with borrowed(attack, model, device):
                traits = traits_of(type(attack))
                set_up(attack, traits, num_classes, fewest=fewest)
                model.raise_logits = traits.raise_logits
                clean = box.images(traits.inside)
                check_images(type(attack).__name__, traits, self.threat.norm, clean, num_classes)
                images = _attacked(attack, clean, session.target[rows])
        x_adv, admitted = box.admitted(images.clamp(0, 1) if traits.leaves_range else images, clean)
        session.rejected[rows] |= ~admitted
        _judge(session, rows[admitted], x_adv[admitted], traits.overshoot)
        session.steps_to_fool[rows] = -1


def _judge(session: Session, rows: Tensor, x_adv: Tensor, overshoot: float) -> None:
    """Ask the model itself; projection takes away the rounding error that was admitted."""
    run = Run(session, rows, cross_entropy, None, None)
    run.x = run.ball.project(x_adv)
    run.look(gradient=False)
    if overshoot and len(run):
        run.x = run.ball.project(run.x + overshoot * (run.x - run.ball.inputs))
        run.look(gradient=False)
    run.close()


def _attacked(attack: Any, images: Tensor, target: Tensor) -> Tensor:
    name = type(attack).__name__
    try:
        # Some attacks write into what they are given.
        x_adv: object = attack(images.clone(), target)
    except Exception as error:
        error.add_note(f"in torchattacks' {name} on images of shape {tuple(images.shape)}")
        raise
    if not isinstance(x_adv, Tensor) or x_adv.shape != images.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise ValueError(f"{name} must return images of shape {tuple(images.shape)}, got {got}.")
    return x_adv
