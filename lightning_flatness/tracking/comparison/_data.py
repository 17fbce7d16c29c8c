"""What the scripts of the page read: runs, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from lightning_flatness.tracking.comparison._arrays import Arrays, buckets_within, thinned
from lightning_flatness.tracking.comparison._content import Content, scatter_pairs
from lightning_flatness.tracking.comparison._curves import Figure
from lightning_flatness.tracking.comparison._naming import name_of

_BYTES_OF_A_CURVE = 24
"""Of the numbers that say whose it is and where its positions and values are."""


def page_data(content: Content, drawn: Sequence[Figure], most_bytes: int) -> tuple[str, str]:
    """JSON for a script element, and a sentence on how many numbers it leaves out.

    Args:
        content: what is told of the runs.
        drawn: figures.
        most_bytes: that the JSON may take.
    """
    arrays = Arrays()
    data: dict[str, Any] = {
        "runs": [{"name": name, **style._asdict()} for name, style in zip(content.names, content.look, strict=True)],
        "scatters": scatter_pairs(content),
        "axes": _axes(content, drawn, arrays),
        "figures": [_described(figure) for figure in drawn],
    }
    spent = len(_script_text(data | {"arrays": list(arrays.texts)}))
    curves = [curve for figure in drawn for _, curve in figure.curves]
    buckets = buckets_within(curves, most_bytes - spent - _BYTES_OF_A_CURVE * len(curves))
    for figure, words in zip(drawn, data["figures"], strict=True):
        kept = [(place, *thinned(curve, buckets)) for place, curve in figure.curves]
        words["curves"] = [[place, arrays.place(x), arrays.place(y)] for place, x, y in kept]
    left = sum(len(thinned(curve, buckets)[1]) for curve in curves)
    return _script_text(data | {"arrays": list(arrays.texts)}), _thinning(sum(len(y) for _, y in curves), left, buckets)


def _axes(content: Content, drawn: Sequence[Figure], arrays: Arrays) -> Mapping[str, Any]:
    """Last value of every run under every key, for the scatter."""
    logarithmic, shares = ({one.key for one in drawn if one.log}, {one.key for one in drawn if one.share})
    return {
        key: {
            "title": name_of(key).title,
            "unit": name_of(key).unit,
            "log": key in logarithmic,
            "share": key in shares,
            "values": arrays.place([row[key].last if key in row else nan for row in content.summaries]),
        }
        for key in content.every_key
    }


def _described(figure: Figure) -> dict[str, Any]:
    return {
        "title": figure.title,
        "xlabel": figure.xlabel,
        "unit": figure.unit,
        "log": figure.log,
        "share": figure.share,
        "xlog": figure.xlog,
        "ticks": list(figure.ticks),
    }


def _thinning(before: int, after: int, buckets: int | None) -> str:
    if buckets is None:
        return f"The curves show all {before:,} numbers, none is left out."
    return (
        f"The curves show {after:,} of {before:,} numbers, so that the page stays small: long curves are cut into "
        f"{buckets} parts, of each of which the smallest, the largest and the first undefined value are kept, beside "
        "the first and the last of the curve. Table and scatter rest on all of them."
    )


def _script_text(data: Mapping[str, Any]) -> str:
    """JSON that no name can end the script element with."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
