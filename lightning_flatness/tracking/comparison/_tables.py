"""The tables of the page, as HTML."""

from html import escape
from math import isfinite

from lightning_flatness.tracking.comparison._content import Content
from lightning_flatness.tracking.comparison._curves import curve, is_size
from lightning_flatness.tracking.comparison._naming import name_of
from lightning_flatness.tracking.comparison._sparkline import sparkline
from lightning_flatness.tracking.comparison._styles import Style
from lightning_flatness.tracking.comparison._words import shown, swatch
from lightning_flatness.tracking.comparison.summary import differing_config
from lightning_flatness.tracking.directions import ARROWS, extreme_is

_BADGE = ' <span class="badge">not trustworthy</span>'


def run_table(content: Content) -> str:
    """One row per run; last value, smallest or largest one and its epoch for each of the columns."""
    cells = [_cells(content, key) for key in content.columns]
    rows = "".join(
        f'<tr data-run="{place}"{_alarm_class(style)}>'
        f"{_row_head(name, swatch(style), _BADGE if style.alarmed else '')}{''.join(one[place] for one in cells)}</tr>"
        for place, (name, style) in enumerate(zip(content.names, content.look, strict=True))
    )
    groups = "".join(_group_head(key) for key in content.columns)
    heads = "".join(f'<th scope="col">{_sorter(text)}</th>' for text in ("last", "min / max", "in epoch"))
    return (
        '<table class="sortable"><caption><span>Last logged value of each run, and the smallest (↓) or largest (↑) '
        "one; the exact number is in the tooltip of a cell, small curves share one scale per column and show at most "
        "48 points.</span></caption>"
        f'<thead><tr><th rowspan="2" scope="col" class="corner">{_sorter("run")}</th>{groups}</tr>'
        f"<tr>{heads * len(content.columns)}</tr></thead><tbody>{rows}</tbody></table>"
    )


def config_table(content: Content) -> str:
    """Settings in which the runs differ."""
    differing = differing_config(content.runs)
    if not differing:
        return "<p>No setting that was recorded differs between the runs.</p>"
    heads = "".join(f'<th scope="col">{_sorter(name)}</th>' for name in differing)
    rows = "".join(
        f'<tr data-run="{place}"{_alarm_class(style)}>{_row_head(name)}'
        f"{''.join(_setting(values[place]) for values in differing.values())}</tr>"
        for place, (name, style) in enumerate(zip(content.names, content.look, strict=True))
    )
    return (
        '<div class="scroll" role="region" aria-label="Configuration differences" tabindex="0">'
        '<table class="sortable"><caption><span>Settings that are not the same in all runs.</span></caption>'
        f'<thead><tr><th scope="col" class="corner">{_sorter("run")}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def source_table(content: Content) -> str:
    """Where the runs were read from."""
    rows = "".join(
        f"<tr>{_row_head(run.name)}<td>{escape(run.source)}</td><td>{len(run.epochs)}</td></tr>" for run in content.runs
    )
    return (
        '<div class="scroll" role="region" aria-label="Sources" tabindex="0"><table><thead><tr>'
        '<th scope="col" class="corner">run</th><th scope="col">read from</th><th scope="col">epochs</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(content: Content, key: str) -> list[str]:
    """The three cells of each run."""
    curves = [curve(run.epochs, key)[1] for run in content.runs]
    finite = [value for values in curves for value in values if isfinite(value)]
    log = is_size(name_of(key).unit, finite)
    drawn = [value for value in finite if value > 0] if log else finite
    end = extreme_is(key)
    arrow = f"{ARROWS[end]} " if end else ""
    low, high = min(drawn, default=0.0), max(drawn, default=1.0)
    cells = []
    for summary, values in zip(content.summaries, curves, strict=True):
        one = summary.get(key)
        line = sparkline(values, low, high, log=log) if values else ""
        if one is None:
            cells.append(_cell(None) * 3)
        else:
            cells.append(_cell(one.last, line) + _cell(one.extreme, arrow) + _cell(one.epoch_of_extreme))
    return cells


def _cell(value: float | None, before: str = "") -> str:
    if value is None:
        return '<td class="none">–</td>'
    words = f'<span class="cell">{before}<span>{shown(value)}</span></span>'
    return f'<td data-value="{value!r}" title="{value!r}">{words}</td>'


def _row_head(name: str, before: str = "", after: str = "") -> str:
    return f'<th scope="row" data-value="{escape(name)}">{before}{escape(name)}{after}</th>'


def _setting(text: str | None) -> str:
    return '<td class="none">–</td>' if text is None else f'<td data-value="{escape(text)}">{escape(text)}</td>'


def _alarm_class(style: Style) -> str:
    return ' class="warned"' if style.alarmed else ""


def _sorter(text: str) -> str:
    return f'<button type="button" class="sort">{escape(text)}</button>'


def _group_head(key: str) -> str:
    name = name_of(key)
    unit = f" <small>{escape(name.unit)}</small>" if name.unit and name.unit not in name.title else ""
    tip = escape(f"{key}: {name.says}" if name.says else key)
    return f'<th colspan="3" scope="colgroup" title="{tip}">{escape(name.title)}{unit}</th>'
