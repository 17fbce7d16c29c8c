"""The parts of the page that are words and tables, as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from lightning_flatness.tracking.comparison import _content as content
from lightning_flatness.tracking.comparison._curves import curve, is_size
from lightning_flatness.tracking.comparison._naming import name_of
from lightning_flatness.tracking.comparison._sparkline import sparkline
from lightning_flatness.tracking.comparison._styles import Style
from lightning_flatness.tracking.runs import Run

_MARKERS = {
    "x": "M12 4l8 8m0-8l-8 8",
    "circle": "M12 8a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M12.5 4.5h7v7h-7z",
    "diamond": "M16 3l5 5l-5 5l-5 -5z",
    "triangle-up": "M16 3.5l4.5 8h-9z",
    "triangle-down": "M16 12.5l4.5 -8h-9z",
    "hexagon": "M16 3.5l4 2.2v4.6l-4 2.2l-4 -2.2v-4.6z",
}
BADGE = ' <span class="badge">not trustworthy</span>'


def table(runs: Sequence[Run], names: Sequence[str], styles: Sequence[Style], columns: Sequence[str]) -> str:
    """One row per run; last, best and epoch of the best for each of the main keys."""
    ranges = {key: _range(runs, key) for key in columns}
    heads = "".join(_group_head(key) for key in columns)
    subheads = "".join(_subheads() for _ in columns)
    rows = "".join(
        f'<tr data-run="{place}"{_alarm_class(style)}><th scope="row" data-value="{escape(name)}">'
        f"{swatch(style)}{escape(name)}{BADGE if style.alarmed else ''}</th>"
        + "".join(_cells(run, key, *ranges[key]) for key in columns)
        + "</tr>"
        for place, (run, name, style) in enumerate(zip(runs, names, styles, strict=True))
    )
    return (
        "<table class=sortable><caption><span>Last and best logged value of each run; the exact number is in the "
        "tooltip of a cell, small curves share one scale per column and show at most 48 points.</span></caption><thead>"
        f'<tr><th rowspan=2 scope="col" class="corner">{_sorter("run")}</th>{heads}</tr><tr>{subheads}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def chips(names: Sequence[str], styles: Sequence[Style]) -> str:
    """One switch per run, which is the legend of all figures."""
    return "".join(
        f'<button type="button" class="chip{" warned" if style.alarmed else ""}" data-run="{place}" '
        f'aria-pressed="true">{swatch(style)}<span>{escape(name)}</span>'
        f"{'<span class=flag>⚠ alarm</span>' if style.alarmed else ''}</button>"
        for place, (name, style) in enumerate(zip(names, styles, strict=True))
    )


def alarm_cards(runs: Sequence[Run], names: Sequence[str], columns: Sequence[str]) -> str:
    """What must not be believed, in words, with where the run would stand if it were."""
    cards = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        reasons = content.alarms(run)
        if reasons:
            items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
            cards.append(
                f'<article class="alarm"><h3><span aria-hidden="true">⚠</span> {escape(name)}: its robust accuracy '
                f"cannot be trusted</h3>{_standings(runs, place, columns)}<ul>{items}</ul></article>"
            )
    words = f'<div class="alarms">{"".join(cards)}</div>' if cards else ""
    return words + _unalarmed(runs, len(cards))


def config_table(runs: Sequence[Run], names: Sequence[str], styles: Sequence[Style]) -> str:
    """Settings in which the runs differ."""
    differing: Mapping[str, Sequence[Any]] = content.differing_config(runs)
    if not differing:
        return "<p>No setting that was recorded differs between the runs.</p>"
    heads = "".join(f'<th scope="col">{_sorter(name)}</th>' for name in differing)
    rows = "".join(
        f'<tr data-run="{place}"{_alarm_class(styles[place])}>{_row_head(name)}'
        + "".join(_setting(values[place]) for values in differing.values())
        + "</tr>"
        for place, name in enumerate(names)
    )
    return (
        "<div class=scroll role=region aria-label='Configuration differences' tabindex=0><table class=sortable>"
        "<caption><span>Settings that are not the same in all runs.</span></caption>"
        f'<thead><tr><th scope="col" class="corner">{_sorter("run")}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def notes(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Where the runs were read from, and what could not be read or cannot be drawn."""
    read = [f"{name}: {note}" for run, name in zip(runs, names, strict=True) for note in run.notes]
    empty = [f"{name}: nothing was logged." for run, name in zip(runs, names, strict=True) if not run.epochs]
    sources = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(run.source)}</td><td>{len(run.epochs)}</td></tr>"
        for run, name in zip(runs, names, strict=True)
    )
    return (
        _items("Not read", [*read, *empty], "Everything was read.")
        + _items("NaN and infinite values", content.undefined_values(runs, names), "All values are finite.")
        + "<details><summary>Sources</summary><div class=scroll role=region aria-label=Sources tabindex=0><table>"
        "<thead><tr><th scope=col>run</th><th scope=col>read from</th><th scope=col>epochs</th></tr></thead>"
        f"<tbody>{sources}</tbody></table></div></details>"
    )


def swatch(style: Style) -> str:
    """The line of a run, as the figures draw it."""
    marker = f'<path class="{"cross" if style.alarmed else "mark"}" d="{_MARKERS[style.symbol]}"/>'
    return (
        f'<svg class="swatch colour-{style.colour} dash-{style.dash}" width="32" height="16" viewBox="0 0 32 16" '
        f'aria-hidden="true"><path class="line" d="M1 8h30"/>{marker}</svg>'
    )


def shown(value: float) -> str:
    """A number short enough for a table."""
    return f"{value:.4g}" if isfinite(value) else {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(value)]


def _items(heading: str, lines: Sequence[str], otherwise: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h3>{heading}</h3>" + (f"<ul>{items}</ul>" if lines else f"<p>{otherwise}</p>")


def _standings(runs: Sequence[Run], place: int, columns: Sequence[str]) -> str:
    words = [
        f"<li><b>{shown(one.value)}</b> {escape(one.title)}, rank {one.rank} of {one.runs}</li>"
        for one in content.standings(runs, place, columns)
    ]
    return f"<ul class=standing>{''.join(words)}</ul>" if words else ""


def _unalarmed(runs: Sequence[Run], alarmed: int) -> str:
    unchecked = sum(not content.is_checked(run) and not content.alarms(run) for run in runs)
    if alarmed + unchecked == len(runs) and alarmed:
        calm = ""
    elif unchecked == len(runs):
        calm = "No run was checked for gradient masking: robust accuracies may be too high."
    else:
        calm = f"No masking alarm in {len(runs) - alarmed - unchecked} of {len(runs)} runs."
    if unchecked and unchecked < len(runs):
        calm += f" {unchecked} of {len(runs)} were not checked for gradient masking, so theirs may be too high."
    return f"<p class=calm>{calm}</p>" if calm else ""


def _row_head(name: str) -> str:
    return f'<th scope="row" data-value="{escape(name)}">{escape(name)}</th>'


def _setting(value: Any) -> str:
    text = "" if value is None else str(value)
    return f'<td data-value="{escape(text)}">{escape(text) or "–"}</td>'


def _alarm_class(style: Style) -> str:
    return ' class="warned"' if style.alarmed else ""


def _sorter(text: str) -> str:
    return f'<button type="button" class="sort">{escape(text)}</button>'


def _group_head(key: str) -> str:
    name = name_of(key)
    unit = f" <small>{escape(name.unit)}</small>" if name.unit else ""
    tip = escape(f"{key}: {name.says}" if name.says else key)
    return f'<th colspan=3 scope="colgroup" title="{tip}">{escape(name.title)}{unit}</th>'


def _subheads() -> str:
    return "".join(f'<th scope="col">{_sorter(text)}</th>' for text in ("last", "best", "at epoch"))


def _range(runs: Sequence[Run], key: str) -> tuple[float, float, bool]:
    values = [value for run in runs for value in curve(run.epochs, key)[1] if isfinite(value)]
    log = is_size(name_of(key).unit, values)
    drawn = [value for value in values if value > 0] if log else values
    return min(drawn, default=0.0), max(drawn, default=1.0), log


def _cells(run: Run, key: str, low: float, high: float, log: bool) -> str:  # noqa: FBT001 - a part of the range
    values = curve(run.epochs, key)[1]
    one = content.summary(run, key)
    line = sparkline(values, low, high, log=log) if values else ""
    return _cell(one.last, line) + _cell(one.best) + _cell(one.epoch)


def _cell(value: float | None, before: str = "") -> str:
    if value is None:
        return '<td class="none">–</td>'
    words = f'<span class="cell">{before}<span>{shown(value)}</span></span>'
    return f'<td data-value="{value!r}" title="{value!r}">{words}</td>'
