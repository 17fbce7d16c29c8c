"""The attacks of one batch: run, timed, tried out, and run again where memory does not suffice."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import NamedTuple

from lightning_flatness.attacks import (
    AdaptiveAttack,
    Attack,
    AttackResult,
    LogitsFunction,
    ThreatModel,
    TorchattacksAttack,
    pgd,
)
from lightning_flatness.callbacks._attack_record import AttackedBatch
from lightning_flatness.callbacks._memory import Memory, ResultT
from lightning_flatness.callbacks._pass_budget import PassBudget


class AttackRun(NamedTuple):
    """One batch, and what attacks on it may use.

    Args:
        logits_fn: maps inputs to logits, in parts where ``memory`` says so, and counted by ``passes``.
        batch: samples, and what the model says of them.
        memory: how many samples go through the module at a time.
        passes: of samples through the module.
    """

    logits_fn: LogitsFunction
    batch: AttackedBatch
    memory: Memory
    passes: PassBudget

    def suffice(self, work: Callable[[LogitsFunction, AttackedBatch], ResultT]) -> ResultT:
        """Run ``work``; where memory does not suffice, in parts with the same random numbers."""
        state, passes = self.batch.generator.get_state(), self.passes.passes

        def again() -> ResultT:
            self.batch.generator.set_state(state)
            self.passes.passes = passes
            return work(self.logits_fn, self.batch)

        return self.memory.suffice(again, len(self.batch.inputs))

    def attack(self, attacks: Mapping[str, Attack]) -> tuple[dict[str, AttackResult], dict[str, float]]:
        """Run every attack.

        Args:
            attacks: by label.

        Returns:
            Results and seconds by label.
        """
        results, seconds = {}, {}
        for label, attack in attacks.items():
            start = perf_counter()
            results[label] = self.suffice(partial(_run, label, attack))
            seconds[label] = perf_counter() - start
        return results, seconds

    def try_out(self, attacks: Mapping[str, Attack], threat: ThreatModel) -> None:
        """Run every attack as cheaply as it can, to see that it works on this model and data.

        Args:
            attacks: by label.
            threat: the ball and the valid range.
        """
        self.suffice(partial(_try_out, attacks, threat))


def _run(label: str, attack: Attack, logits_fn: LogitsFunction, batch: AttackedBatch) -> AttackResult:
    """Attack one batch; an error says which attack it comes from."""
    with _named(label):
        result: object = attack(
            logits_fn, batch.inputs, batch.target, generator=batch.generator, clean_logits=batch.clean_logits
        )
        if not isinstance(result, AttackResult):
            raise ValueError(f"An attack must return an `AttackResult`, got {type(result).__name__}.")
        return result


def _try_out(
    attacks: Mapping[str, Attack], threat: ThreatModel, logits_fn: LogitsFunction, batch: AttackedBatch
) -> None:
    pgd(logits_fn, batch.inputs, batch.target, threat, steps=1, clean_logits=batch.clean_logits)
    # An untrained model may be wrong everywhere, and wrong samples are not attacked.
    known = batch._replace(target=batch.clean_logits.argmax(1))
    for label, attack in attacks.items():
        if isinstance(attack, AdaptiveAttack | TorchattacksAttack):
            with _named(label):
                attack.check(logits_fn, known.inputs, known.target)
        else:
            _run(label, attack, logits_fn, known)


@contextmanager
def _named(label: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"In the attack {label!r}.")
        raise
