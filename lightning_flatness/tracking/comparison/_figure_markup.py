"""The frames of the figures, which are drawn into them once they are seen."""

from collections.abc import Sequence
from html import escape

from lightning_flatness.tracking.comparison._curves import SECTIONS, Figure

_OVER_EPOCHS = "More: counts, ends of intervals, single classes and scales, over the epochs"


def figure_sections(drawn: Sequence[Figure]) -> str:
    """One section for each group that has figures; what is looked at rarely is folded away."""
    numbered = list(enumerate(drawn))
    parts = []
    for group, title in SECTIONS.items():
        main = [_frame(place, one) for place, one in numbered if one.section == group and not one.minor]
        minor = [_frame(place, one) for place, one in numbered if one.section == group and one.minor]
        if main or minor:
            more = f"<details><summary>{_OVER_EPOCHS} ({len(minor)})</summary>{_grid(minor)}</details>" if minor else ""
            parts.append(
                f'<section id="{group}" aria-labelledby="{group}-title"><h2 id="{group}-title">{title}</h2>'
                f"{_grid(main) if main else ''}{more}</section>"
            )
    return "".join(parts)


def _grid(frames: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(frames)}</div>'


def _frame(place: int, figure: Figure) -> str:
    title = escape(figure.title)
    says = escape(figure.says)
    key = f"<code>{escape(figure.key)}</code>" if figure.key not in {"", figure.title} else ""
    scale = (
        f'<button type="button" class="log" aria-pressed="true" aria-label="Logarithmic axis: {title}">log</button>'
        if figure.log
        else ""
    )
    return (
        f'<figure class="card"><figcaption><div><h3>{title}</h3><p class="says">{says} {key}</p></div>'
        f'<div class="tools">{scale}<button type="button" class="png" aria-label="Save as PNG: {title}">PNG</button>'
        f'</div></figcaption><div class="plot" data-figure="{place}"></div><p class="note" hidden></p></figure>'
    )
