"""Runs that Weights & Biases recorded on this machine, without a server."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_flatness.tracking._epochs import EpochRows
from lightning_flatness.tracking.runs._wandb_records import Damage, put, records
from lightning_flatness.tracking.runs._wandb_values import numbers, settings, texts
from lightning_flatness.tracking.runs.run import Run


@dataclass
class _Recorded:
    """What the records say beside the history."""

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    has_ended: bool = False

    def take(self, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                self.name = record.run.display_name or self.name
                put(record.run.config.update, self.config)
            case "config":
                put(record.config.update, self.config)
            case "summary":
                put(record.summary.update, self.summary)
            case "exit":
                self.has_ended = True


def read_offline_run(path: Path, name: str) -> Run:
    """Read a run record by record; of one that crashed, what is there.

    Args:
        path: ``run-….wandb``.
        name: of the run, if it has none of its own.
    """
    recorded, rows, damage = _Recorded(), EpochRows(), Damage()
    for record in records(path, damage):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            put(record.history.item, row)
            rows.add(numbers(row))
        else:
            recorded.take(record)
    epochs, config = rows.in_order(), settings(recorded.config)
    notes = [*_notes(path, damage, has_ended=recorded.has_ended), *rows.notes(), *config.notes]
    if not epochs:
        notes.append(f"{path.name} holds no values.")
    return Run(recorded.name or name, str(path.parent), epochs, config.values, texts(recorded.summary), notes)


def _notes(path: Path, damage: Damage, *, has_ended: bool) -> Iterator[str]:
    if damage.is_foreign:
        yield f"{path.name} is no file of Weights & Biases, or its beginning is lost."
        return
    if damage.parts:
        yield f"{damage.parts} damaged parts of {path.name} were left out."
    if damage.is_cut:
        yield "The file ends in the middle of a record: the run crashed or still runs."
    elif not has_ended:
        yield "The file does not say that the run has ended: it crashed or still runs."
