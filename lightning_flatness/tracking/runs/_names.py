"""Names that tell runs apart."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from unicodedata import category

from lightning_flatness.tracking.runs.run import Run

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of what would act on a terminal or page, or cannot be written at all."""


def printable(text: str) -> str:
    r"""A text on one line, without control characters.

    Example:
        >>> printable("a\x1b[31mb\nc ")
        'a[31mb c'
    """
    return "".join(letter for letter in " ".join(text.split()) if category(letter) not in _INVISIBLE).strip()


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs with names of one line each, no two alike: runs of one name also get their source.

    Args:
        runs: with any names.
    """
    named = [
        replace(
            run,
            name=printable(run.name) or "run",
            source=printable(run.source),
            notes=[printable(note) for note in run.notes],
        )
        for run in runs
    ]
    numbers = Counter(run.name for run in named)
    taken = {name for name, number in numbers.items() if number == 1}
    apart = []
    for run in named:
        name = run.name
        if numbers[name] > 1:
            counted = (f"{run.name} ({number})" for number in count(2))
            name = next(new for new in chain([f"{run.name} ({run.source})"], counted) if new not in taken)
            taken.add(name)
        apart.append(replace(run, name=name))
    return apart
