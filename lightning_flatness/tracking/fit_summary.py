"""What a fit has come to, as a table on the terminal."""

from re import compile as pattern
from typing import TYPE_CHECKING

from lightning_flatness.tracking import keys
from lightning_flatness.tracking._labels import threat_order
from lightning_flatness.tracking.comparison._places import apart
from lightning_flatness.tracking.comparison.alarms import alarms, remarks
from lightning_flatness.tracking.comparison.summary import summarise
from lightning_flatness.tracking.directions import ARROWS, extreme_is
from lightning_flatness.tracking.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

_HEADLINE = pattern(
    r"\w+/(relative_flatness|median|correct|wrong"
    r"|(certified|estimated)_(accuracy_[\d_]+|radius_median)|(lipschitz_)?violation_rate"
    r"|\w*(robust|clean)_accuracy|alarm"
    r"|(clean|peak|final)_flatness|valley_rate|basin_width"
    r"|(relative_flatness_median|robust_accuracy_cross_entropy|robust_accuracy_margin)_(1|100))(/dataloader_idx_\d+)?"
)
_COUNT = pattern(r"\w+/(\w+_)?(nonfinite|rejected)(/dataloader_idx_\d+)?")
"""Of samples that the values leave out."""


def fit_summary(run: Run) -> "Table":
    """Lay out the last value of the main keys, the smallest (↓) or largest (↑) one and its epoch, and the alarms below.

    A key without a value where its group was measured last has a dash there.

    Args:
        run: what the monitors have measured in one fit.

    Returns:
        A rich table, without rows where no main key was logged.
    """
    from rich.box import SIMPLE  # noqa: PLC0415 - slow to import
    from rich.markup import escape  # noqa: PLC0415 - slow to import
    from rich.table import Table  # noqa: PLC0415 - slow to import

    caption = "\n".join([
        *(f"[bold red]![/] {escape(paragraph)}" for paragraph in alarms(run)),
        *map(escape, remarks(run)),
    ])
    title = "What the monitors measured"
    table = Table(title=title, caption=caption, caption_justify="left", caption_style="", box=SIMPLE, pad_edge=False)
    table.add_column("key", overflow="fold")
    for header in ("last", "min / max", "in epoch"):
        table.add_column(header, justify="right")
    summaries = summarise(run)
    for key in _in_order([key for key in summaries if _is_shown(run, key)]):
        found, end = summaries[key], extreme_is(key)
        extreme: tuple[str, ...] = ()
        if end is not None and found.extreme is not None:
            extreme = f"{ARROWS[end]} {found.extreme:.4g}", f"{found.epoch_of_extreme:g}"
        table.add_row(key, escape(_last(run, key)), *extreme)
    return table


def _is_shown(run: Run, key: str) -> bool:
    if _COUNT.fullmatch(key):
        return any(row.get(key, 0) > 0 for row in run.epochs)
    return _HEADLINE.fullmatch(key) is not None and not key.startswith(f"{keys.SCALING_GROUP}/clean")


def _last(run: Run, key: str) -> str:
    """The value where the group was measured last, with the number of samples if it is that of a part."""
    name, place = apart(key)
    row = [row for row in run.epochs if any(apart(other)[1] == place for other in row)][-1]
    if key not in row:
        return "–"
    samples = row.get(place.key(f"{name.removesuffix(keys.ROBUST_ACCURACY)}{keys.SAMPLES}"))
    is_part = place.key(f"{name}{keys.INTERVAL_ENDS[0]}") in row
    return f"{row[key]:.4g}" + (f" of {samples:g}" if is_part and samples is not None else "")


def _in_order(found: list[str]) -> list[str]:
    """By group; attacks by radius, the clean accuracy of the attacked samples before the robust one."""
    groups = list(dict.fromkeys(key.partition("/")[0] for key in found))
    stems = list(dict.fromkeys(key.replace(keys.CLEAN_ACCURACY, keys.ROBUST_ACCURACY) for key in found))

    def place(key: str) -> tuple[int, int, float, int, bool]:
        stem = key.replace(keys.CLEAN_ACCURACY, keys.ROBUST_ACCURACY)
        label = apart(stem)[0].removesuffix(f"_{keys.ROBUST_ACCURACY}")
        return groups.index(key.partition("/")[0]), *threat_order(label), stems.index(stem), stem == key

    return sorted(found, key=place)
