"""What the page says in words, and the legend, as HTML."""

from collections.abc import Sequence
from html import escape
from math import isfinite

from lightning_flatness.tracking.comparison._content import Content, is_checked, standings, undefined_values
from lightning_flatness.tracking.comparison._styles import Style

_MOST_LINES = 12
_MARKERS = {
    "x": "M12 4l8 8m0-8l-8 8",
    "circle": "M12 8a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M12.5 4.5h7v7h-7z",
    "diamond": "M16 3l5 5l-5 5l-5 -5z",
    "triangle-up": "M16 3.5l4.5 8h-9z",
    "triangle-down": "M16 12.5l4.5 -8h-9z",
    "hexagon": "M16 3.5l4 2.2v4.6l-4 2.2l-4 -2.2v-4.6z",
}


def alarm_cards(content: Content) -> str:
    """What must not be believed, in words, with where the run would stand if it were."""
    cards = [_card(content, place) for place, reasons in enumerate(content.alarms) if reasons]
    words = f'<div class="alarms">{"".join(cards)}</div>' if cards else ""
    return words + _without_alarm(content)


def chips(content: Content) -> str:
    """One switch per run, which is the legend of all figures."""
    return "".join(
        f'<button type="button" class="chip{" warned" if style.alarmed else ""}" data-run="{place}" '
        f'aria-pressed="true">{swatch(style)}<span>{escape(name)}</span>'
        f"{'<span class=flag>⚠ alarm</span>' if style.alarmed else ''}</button>"
        for place, (name, style) in enumerate(zip(content.names, content.look, strict=True))
    )


def notes(content: Content) -> str:
    """What could not be read or cannot be drawn."""
    read = [f"{run.name}: {note}" for run in content.runs for note in run.notes]
    weak = [f"{name}: {remark}" for name, found in zip(content.names, content.remarks, strict=True) for remark in found]
    empty = [f"{run.name}: nothing was logged." for run in content.runs if not run.epochs]
    return (
        _items("Attacks that find little", weak, "None.")
        + _items("Not read", [*read, *empty], "Everything was read.")
        + _items("NaN and infinite values", undefined_values(content), "All values are finite.")
    )


def swatch(style: Style) -> str:
    """The line of a run, as the figures draw it."""
    marker = f'<path class="{"cross" if style.alarmed else "mark"}" d="{_MARKERS[style.symbol]}"/>'
    return (
        f'<svg class="swatch colour-{style.colour} dash-{style.dash}" width="32" height="16" viewBox="0 0 32 16" '
        f'aria-hidden="true"><path class="line" d="M1 8h30"/>{marker}</svg>'
    )


def shown(value: float) -> str:
    """A number short enough for a table.

    Example:
        >>> shown(0.123456), shown(float("-inf"))
        ('0.1235', '−∞')
    """
    return f"{value:.4g}" if isfinite(value) else {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(value)]


def _reason(paragraph: str) -> str:
    """The first sentence; the others on demand."""
    first, stop, rest = paragraph.partition(". ")
    return f"<details><summary>{escape(first)}.</summary>{escape(rest)}</details>" if stop else escape(first)


def _items(heading: str, lines: Sequence[str], otherwise: str) -> str:
    if not lines:
        return f"<h3>{heading}</h3><p>{otherwise}</p>"
    items = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    if len(lines) > _MOST_LINES:
        items = f"<details><summary>{len(lines)} notes</summary>{items}</details>"
    return f"<h3>{heading}</h3>{items}"


def _card(content: Content, place: int) -> str:
    name = escape(content.names[place])
    paragraphs = [*content.remarks[place], *content.alarms[place]]
    reasons = "".join(f"<li>{_reason(paragraph)}</li>" for paragraph in paragraphs)
    return (
        f'<article class="alarm"><h3><span aria-hidden="true">⚠</span> {name}: do not trust its robustness</h3>'
        f"{_standings(content, place)}<ul>{reasons}</ul></article>"
    )


def _standings(content: Content, place: int) -> str:
    words = [
        f"<li><b>{shown(one.value)}</b> {escape(one.title)}, rank {one.rank} of {one.runs}</li>"
        for one in standings(content, place)
    ]
    return f'<ul class="standing">{"".join(words)}</ul>' if words else ""


def _without_alarm(content: Content) -> str:
    calm = [run for run, reasons in zip(content.runs, content.alarms, strict=True) if not reasons]
    unchecked = sum(not is_checked(run) for run in calm)
    number = len(content.runs)
    where = "any run" if len(calm) == number else f"{len(calm)} of {number} runs"
    sentences = [f"No alarm in {where}."] if calm else []
    if unchecked:
        who = "None" if unchecked == number else f"{unchecked} of {number}"
        verb = "was" if unchecked == number else "were not"
        sentences.append(f"{who} {verb} checked for gradient masking: robust accuracies may be too high.")
    return f'<p class="calm">{" ".join(sentences)}</p>' if sentences else ""
