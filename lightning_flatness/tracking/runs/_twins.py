"""One fit that two loggers have kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._epochs import Row
from lightning_flatness.tracking.runs.run import Run


class Found(NamedTuple):
    """A run, and whether Weights & Biases kept it."""

    run: Run
    by_wandb: bool


def each_fit_once(found: Sequence[Found]) -> list[Run]:
    """Join a run of a ``CSVLogger`` with the one of Weights & Biases that holds the same values, where there is one.

    They are the same fit if every value of the library that both have logged is the same in every epoch. The name is
    that of Weights & Biases; settings and values are those of both.
    """
    partners = [one.run for one in found if one.by_wandb]
    joined: dict[int, Run] = {}
    alone: list[Run] = []
    for one in found:
        if one.by_wandb:
            continue
        place = next((i for i, run in enumerate(partners) if i not in joined and _are_one(one.run, run)), None)
        if place is None:
            alone.append(one.run)
        else:
            joined[place] = _join(one.run, partners[place])
    by_wandb = iter([joined.get(place, run) for place, run in enumerate(partners)])
    by_csv = {id(run) for run in alone}
    return [next(by_wandb) if one.by_wandb else one.run for one in found if one.by_wandb or id(one.run) in by_csv]


def _are_one(first: Run, second: Run) -> bool:
    names = _measured(first) & _measured(second)
    return bool(names) and _values(first, names) == _values(second, names)


def _measured(run: Run) -> set[str]:
    return {name for row in run.epochs for name in row if name.removeprefix("test_").split("/")[0] in keys.GROUPS}


def _values(run: Run, names: set[str]) -> dict[float, dict[str, str]]:
    """By epoch, as text: NaN is like NaN."""
    rows = {row["epoch"]: {name: repr(row[name]) for name in names & row.keys()} for row in run.epochs}
    return {epoch: values for epoch, values in rows.items() if values}


def _join(by_csv: Run, by_wandb: Run) -> Run:
    rows: dict[float, Row] = {}
    for run in (by_csv, by_wandb):
        for row in run.epochs:
            rows.setdefault(row["epoch"], {}).update(row)
    return replace(
        by_wandb,
        epochs=[rows[epoch] for epoch in sorted(rows)],
        config={**by_csv.config, **by_wandb.config},
        notes=[*by_wandb.notes, *by_csv.notes, f"The same values are in {by_csv.source}; both are one run here."],
    )
