"""One attack on one batch: what is known of every sample, and runs over those that still stand."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_flatness.attacks._ball import Ball
from lightning_flatness.attacks._class_logits import other_logits
from lightning_flatness.attacks._noise import sample_seeds
from lightning_flatness.attacks._oracle import Evaluation, LogitsFunction, Oracle, usable
from lightning_flatness.attacks._path import PathRecorder, PointObserver
from lightning_flatness.attacks._targeted_losses import TargetedLoss
from lightning_flatness.attacks.losses import AttackLoss, cross_entropy
from lightning_flatness.attacks.result import AttackResult
from lightning_flatness.attacks.threat import ThreatModel
from lightning_flatness.functional._logit_loss import check_classes
from lightning_flatness.functional._numerics import at_least_float32


@dataclass(frozen=True)
class Options:
    """What all attacks have in common.

    Args:
        autocast_dtype: see :func:`~lightning_flatness.attacks.pgd`.
        stop_when_fooled: see :func:`~lightning_flatness.attacks.pgd`.
        on_point: see :func:`~lightning_flatness.attacks.pgd`.
    """

    autocast_dtype: torch.dtype | None = None
    stop_when_fooled: bool = True
    on_point: PointObserver | None = None


class Session:
    """Record of every sample of the batch, over all restarts and stages; made and used with gradients enabled.

    Raises:
        ValueError: if inputs, targets or logits are not what they should be.
    """

    def __init__(
        self,
        logits_fn: LogitsFunction,
        inputs: Float[Tensor, "batch *shape"],
        target: Int[Tensor, " batch"],
        threat: ThreatModel,
        generator: torch.Generator | None,
        clean_logits: Float[Tensor, "batch classes"] | None,
        options: Options,
    ) -> None:
        threat.check_inputs(inputs)
        # Tensors made in inference mode cannot be recorded, their copies can.
        self.inputs, self.target = inputs.detach().clone(), target.detach().clone().long()
        self.options = options
        self.oracle = Oracle(logits_fn, options.autocast_dtype)
        self.clean_logits = self._clean_logits(clean_logits)
        check_classes(self.clean_logits, target)
        _check_class_values(self.clean_logits, target)
        self.ball = threat.around(self.inputs)
        self.seeds = sample_seeds(len(inputs), generator, inputs.device)
        self.x_adv = self.inputs.clone()
        self.loss = cross_entropy(self.clean_logits, self.target)
        self.nonfinite = ~usable(self.clean_logits)
        self.initially_correct = ~self.nonfinite & (self.clean_logits.argmax(1) == self.target)
        self.success = torch.zeros_like(self.initially_correct)
        self.rejected = torch.zeros_like(self.initially_correct)
        self.steps_to_fool = torch.full_like(self.target, -1)
        self.steps = 0
        self.path: PathRecorder | None = None

    def standing(self) -> Int[Tensor, " rows"]:
        """Rows of the samples that are still attacked."""
        stop = self.options.stop_when_fooled
        standing = self.initially_correct & ~self.success if stop else self.initially_correct
        return standing.nonzero().squeeze(1)

    def start(self, objective: AttackLoss, stream: int | None) -> "Run":
        """Begin a run over the samples that still stand, from their random start number ``stream``, or from clean."""
        return Run(self, self.standing(), objective, None, stream)

    def start_targeted(self, objective: TargetedLoss, rank: int, stream: int) -> "Run":
        """Begin a run towards the other class whose clean logit is the ``rank``-th largest, counted from 0."""
        others = other_logits(self.clean_logits, self.target)
        other = others.argsort(dim=1, descending=True)[:, rank]
        rows = self.standing()
        return Run(self, rows, objective, other[rows], stream)

    def result(self) -> AttackResult:
        """Return what was found."""
        return AttackResult(
            x_adv=self.x_adv,
            success=self.success,
            initially_correct=self.initially_correct,
            loss=self.loss,
            steps_to_fool=self.steps_to_fool,
            nonfinite=self.nonfinite,
            forwards=self.oracle.forwards,
            backwards=self.oracle.backwards,
            rejected=self.rejected,
            path=None if self.path is None else self.path.points(),
            path_steps=() if self.path is None else self.path.steps,
        )

    def _clean_logits(self, given: Tensor | None) -> Float[Tensor, "batch classes"]:
        if given is None:
            return self.oracle.logits(self.inputs)
        if given.ndim != 2 or len(given) != len(self.inputs) or not given.is_floating_point():
            raise ValueError(
                f"`clean_logits` must be floating point of shape ({len(self.inputs)}, classes), "
                f"got {given.dtype} {tuple(given.shape)}."
            )
        return at_least_float32(given.detach().clone())


class Run:
    """One descent from one start: the rows of the batch that are still in it, and where they are.

    Args:
        session: the record to write to.
        rows: samples to attack.
        objective: what is to grow; may be changed on the way.
        other: class that is to win, for targeted objectives.
        stream: number of the random start; None to start at the clean input.
    """

    def __init__(
        self,
        session: Session,
        rows: Int[Tensor, " batch"],
        objective: AttackLoss | TargetedLoss,
        other: Int[Tensor, " batch"] | None,
        stream: int | None,
    ) -> None:
        self._session = session
        self.objective = objective
        self._other = other
        self._rows = rows
        self._target = session.target[rows]
        self.ball: Ball = session.ball.take(rows)
        self.seeds = session.seeds[rows]
        self.x = self.ball.inputs if stream is None else self.ball.random_start(self.seeds, stream)
        self._best_x = session.x_adv[rows]
        self._best_loss = session.loss[rows]
        self._fooled = session.success[rows]
        self._steps_to_fool = session.steps_to_fool[rows]
        self._nonfinite = session.nonfinite[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def move(self, x: Float[Tensor, "batch *shape"]) -> None:
        """Take one gradient step to ``x``."""
        self.x = x
        self._session.steps += 1

    def look(self, *, gradient: bool = True) -> tuple[Evaluation | None, Int[Tensor, " stays"] | None]:
        """Ask the model at ``x``, note what it says, and let the fooled samples go.

        Returns:
            What the model says of the samples that stay, None where none does; and positions of the samples that stay,
            None where all do.
        """
        if not len(self):
            return None, None
        session, point = self._session, self.ball.realise(self.x)
        stop = session.options.stop_when_fooled
        seen = session.oracle.evaluate(point, self._target, self._value(), gradient=gradient, count_fooled=stop)
        self._note(point, seen)
        if not seen.num_fooled:
            return seen, None
        # Sorted, since the search for positions in a mask would wait for the device once more.
        order = seen.fooled.byte().argsort(stable=True)
        stays, leaves = order.tensor_split([len(order) - seen.num_fooled])
        self._write(leaves)
        self._keep(stays)
        return _taken(seen, stays) if len(self) else None, stays

    def finish(self) -> None:
        """See where the last step has led, and close."""
        self.look(gradient=False)
        self.close()

    def close(self) -> None:
        """Write down what is known of the samples that are left."""
        self._write(slice(None))

    def _value(self) -> AttackLoss:
        objective, other = self.objective, self._other
        if other is None:
            return objective  # type: ignore[return-value]
        return lambda logits, target: objective(logits, target, other)  # type: ignore[call-arg]

    def _note(self, point: Tensor, seen: Evaluation) -> None:
        steps = self._session.steps
        # An infinite loss comes from logits that count for nothing.
        better = (seen.loss > self._best_loss) & (seen.loss < torch.inf)
        if seen.num_fooled != 0:
            newly = seen.fooled & ~self._fooled
            better = newly | (better & (seen.fooled == self._fooled))
            self._steps_to_fool = torch.where(newly, steps, self._steps_to_fool)
            self._fooled = self._fooled | seen.fooled
        self._best_x = torch.where(self.ball.per_sample(better), point, self._best_x)
        self._best_loss = torch.where(better, seen.loss.to(self._best_loss), self._best_loss)
        self._nonfinite = self._nonfinite | ~seen.finite
        if self._session.path is not None:
            self._session.path.record(self._rows, point, steps)
        if self._session.options.on_point is not None:
            self._session.options.on_point(self._rows, point.detach(), steps)

    def _write(self, which: Tensor | slice) -> None:
        session, rows = self._session, self._rows[which]
        session.x_adv[rows] = self._best_x[which]
        session.loss[rows] = self._best_loss[which]
        session.success[rows] = self._fooled[which]
        session.steps_to_fool[rows] = self._steps_to_fool[which]
        session.nonfinite[rows] = self._nonfinite[which]

    def _keep(self, kept: Int[Tensor, " stays"]) -> None:
        self._rows, self._target, self.ball = self._rows[kept], self._target[kept], self.ball.take(kept)
        self.seeds = self.seeds[kept]
        self.x, self._best_x, self._best_loss = self.x[kept], self._best_x[kept], self._best_loss[kept]
        self._fooled, self._nonfinite = self._fooled[kept], self._nonfinite[kept]
        self._steps_to_fool = self._steps_to_fool[kept]
        self._other = None if self._other is None else self._other[kept]


def _taken(seen: Evaluation, stays: Int[Tensor, " stays"]) -> Evaluation:
    return Evaluation(*(part[stays] if isinstance(part, Tensor) else part for part in seen))  # type: ignore[arg-type]


def _check_class_values(logits: Tensor, target: Tensor) -> None:
    bad = target[(target < 0) | (target >= logits.shape[1])]
    if bad.numel():
        raise ValueError(
            f"`target` must be in [0, {logits.shape[1]}), got {int(bad[0])}; leave out samples without a class."
        )
