"""What is known of one run, whichever logger kept it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_flatness.tracking.csv_log import Row


@dataclass(frozen=True)
class Run:
    """One run: what was logged, exactly, and how it was configured.

    Args:
        name: display name, made unique among the runs that are read together.
        source: where it was read from, as a person would name it.
        epochs: one row per epoch, in order; the last value of a key in an epoch counts, a value that was not logged has
            no entry, one that was NaN or infinite is that.
        config: hyper-parameters and settings; dotted name → plain value.
        texts: key → words, such as the reasons of an alarm.
        notes: what could not be read, in sentences.
    """

    name: str
    source: str
    epochs: Sequence[Row]
    config: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
