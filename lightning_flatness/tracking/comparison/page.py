"""The page that compares runs: one file that works without a network."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from string import Template

from lightning_flatness.tracking.comparison._content import Content, content_of
from lightning_flatness.tracking.comparison._curves import SECTIONS, Figure, figures
from lightning_flatness.tracking.comparison._data import page_data
from lightning_flatness.tracking.comparison._figure_markup import figure_sections
from lightning_flatness.tracking.comparison._tables import config_table, run_table, source_table
from lightning_flatness.tracking.comparison._words import alarm_cards, chips, notes
from lightning_flatness.tracking.runs import Run

MOST_BYTES = 15_000_000
"""Size of a page above which curves are thinned."""
_BYTES_OF_THE_REST = 10_000
_SCRIPTS = ("data.js", "drawing.js", "figures.js", "scatter.js", "table.js", "page.js")


def comparison_page(runs: Sequence[Run]) -> str:
    r"""Lay out runs beside one another: alarms in words, a table, curves, flatness over robust accuracy.

    Numbers are those that were logged, exactly; where the page would be larger than 15 MB, curves are thinned to the
    smallest and the largest value of every bucket, and the page says so.

    Args:
        runs: at least one, of any names and with any keys.

    Returns:
        HTML that needs neither files nor a network.

    Raises:
        ValueError: if there are no runs.
        ModuleNotFoundError: if plotly is missing, which the extra ``compare`` brings.

    Example:
        >>> run = Run("first", "metrics.csv", [{"epoch": 0.0, "flatness/relative_flatness": 0.25}])
        >>> page = comparison_page([run])
        >>> page.startswith("<!doctype html>"), 'data-value="0.25"' in page
        (True, True)
    """
    if not runs:
        raise ValueError("`runs` must hold at least one run, got none.")
    scripts = _scripts()
    content = content_of(runs)
    drawn = figures(content.runs, content.every_key)
    parts = scripts | _parts(content, drawn)
    spent = sum(len(part.encode("utf-8", "replace")) for part in parts.values())
    data, thinning = page_data(content, drawn, MOST_BYTES - _BYTES_OF_THE_REST - spent)
    return Template(_asset("page.html")).substitute(parts, data=data, thinning=escape(thinning))


def _scripts() -> dict[str, str]:
    """Scripts, and the hashes by which the page tells them from any other."""
    if find_spec("plotly") is None:
        raise ModuleNotFoundError("The page needs plotly: pip install 'plotly>=6,<7'")
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an optional dependency

    plotly = str(get_plotlyjs())
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, _SCRIPTS)) + "})();"
    return {"plotly": plotly, "script": script, "hashes": f"{_hash(plotly)} {_hash(script)}"}


def _parts(content: Content, drawn: Sequence[Figure]) -> dict[str, str]:
    return {
        "title": escape(_title(content.names)),
        "count": f"{len(content.names)} run{'s' if len(content.names) > 1 else ''}",
        "alarms": alarm_cards(content),
        "chips": chips(content),
        "table": run_table(content),
        "navigation": _navigation(drawn),
        "sections": figure_sections(drawn),
        "config": config_table(content),
        "notes": notes(content),
        "sources": source_table(content),
        "style": _asset("page.css"),
    }


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text("utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _title(names: Sequence[str]) -> str:
    return f"{names[0]}, {names[1]} and {len(names) - 2} more" if len(names) > 3 else ", ".join(names)


def _navigation(drawn: Sequence[Figure]) -> str:
    present = {figure.section for figure in drawn}
    return "".join(
        f'<a href="#{group}">{title.split(",")[0]}</a>' for group, title in SECTIONS.items() if group in present
    )
