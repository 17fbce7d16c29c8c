"""Comparisons of runs as text: Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from math import isfinite, isnan
from typing import Any

from lightning_flatness.tracking.comparison.alarms import alarms, remarks
from lightning_flatness.tracking.comparison.summary import KeySummary, differing_config, summarise
from lightning_flatness.tracking.directions import ARROWS, extreme_is
from lightning_flatness.tracking.runs import Run
from lightning_flatness.tracking.runs._names import printable

CSV_COLUMNS = ("run", "source", "key", "last", "epoch_of_last", "extreme_is", "extreme", "epoch_of_extreme")
_FORMULA_STARTS = ("=", "+", "-", "@")
_MARKDOWN = str.maketrans({
    **{letter: f"\\{letter}" for letter in "\\|`*[]"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
})


def as_markdown(runs: Sequence[Run]) -> str:
    """Write tables of the last, smallest or largest values, and of the settings that differ; before them the alarms.

    Numbers have four digits; all of them are in CSV and JSON.

    Args:
        runs: to compare.

    Returns:
        GitHub-flavoured Markdown.
    """
    summaries = [summarise(run) for run in runs]
    names = [run.name for run in runs]
    found = list(dict.fromkeys(key for summary in summaries for key in summary))
    values = [[key, *(_last_and_extreme(key, one.get(key)) for one in summaries)] for key in found]
    settings = [[name, *("" if text is None else text for text in row)] for name, row in differing_config(runs).items()]
    parts = [
        f"# Comparison of {len(runs)} run{'s' if len(runs) > 1 else ''}",
        _items("Alarms", runs, [alarms(run) for run in runs]),
        _items("Attacks that find little", runs, [remarks(run) for run in runs]),
        _table("Last value (min ↓ / max ↑, in epoch)", ["key", *names], values),
        _table("Settings that differ", ["setting", *names], settings),
        _table("Sources", ["run", "source"], [[run.name, run.source] for run in runs]),
        _items("Notes", runs, [run.notes for run in runs]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(runs: Sequence[Run]) -> str:
    """Write a line for each run and key, with all digits; NaN and infinities are ``nan`` and ``inf``.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.

    Args:
        runs: to compare.

    Returns:
        Lines under a header with ``CSV_COLUMNS``.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        for key, value in summarise(run).items():
            labels = [_no_formula(label) for label in (run.name, run.source, key)]
            extreme = [extreme_is(key), value.extreme, value.epoch_of_extreme]
            writer.writerow([*labels, value.last, value.epoch_of_last, *extreme])
    return text.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """Write everything: epochs, settings, texts, notes, alarms and summaries of each run, and the settings that differ.

    Numbers have all digits. JSON has no NaN and no infinity: they are the strings ``"NaN"``, ``"Infinity"`` and
    ``"-Infinity"``, which ``float`` and JavaScript's ``Number`` take as they are.

    Args:
        runs: to compare.

    Returns:
        One object.
    """
    content = {
        "runs": [
            {
                "name": run.name,
                "source": run.source,
                "alarms": alarms(run),
                "remarks": remarks(run),
                "notes": run.notes,
                "summary": {key: value._asdict() for key, value in summarise(run).items()},
                "config": run.config,
                "texts": run.texts,
                "epochs": run.epochs,
            }
            for run in runs
        ],
        "differing_config": differing_config(runs),
    }
    return json.dumps(_spelled(content), indent=1, allow_nan=False, default=str) + "\n"


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _spelled(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(part) for part in value]
    if not isinstance(value, float) or isfinite(value):
        return value
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _no_formula(label: str) -> str:
    text = printable(label)
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _escaped(text: str) -> str:
    return printable(text).translate(_MARKDOWN)


def _last_and_extreme(key: str, value: KeySummary | None) -> str:
    if value is None:
        return ""
    end = extreme_is(key)
    extreme = (
        f" ({ARROWS[end]} {value.extreme:.4g}, {value.epoch_of_extreme:g})" if end and value.extreme is not None else ""
    )
    return f"{value.last:.4g}{extreme}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    return "\n".join([f"## {title}", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _items(title: str, runs: Sequence[Run], sentences: Sequence[Sequence[str]]) -> str:
    lines = [
        f"- {_escaped(run.name)}: {_escaped(sentence)}"
        for run, said in zip(runs, sentences, strict=True)
        for sentence in said
    ]
    return "\n".join([f"## {title}", "", *lines]) if lines else ""
