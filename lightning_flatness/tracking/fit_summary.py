"""What a fit has come to, as a table on the terminal."""

from re import compile as pattern
from typing import TYPE_CHECKING

from lightning_flatness.tracking.comparison.alarms import alarms, remarks
from lightning_flatness.tracking.comparison.summary import summarise
from lightning_flatness.tracking.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

_HEADLINE = pattern(
    r"\w+/(relative_flatness|median|correct|wrong"
    r"|(certified|estimated)_(accuracy_[\d_]+|radius_median)|(lipschitz_)?violation_rate"
    r"|\w*robust_accuracy|alarm"
    r"|(clean|peak|final)_flatness|valley_rate|basin_width"
    r"|(relative_flatness_median|robust_accuracy_cross_entropy|robust_accuracy_margin)_(1|100))(/dataloader_idx_\d+)?"
)


def fit_summary(run: Run) -> "Table":
    """Lay out the last value of the main keys, the best one and its epoch; the alarms stand below, in words.

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
    for header in ("last", "best", "in epoch"):
        table.add_column(header, justify="right")
    for key, found in summarise(run).items():
        if _HEADLINE.fullmatch(key):
            best = () if found.best is None else (f"{found.best:.4g}", f"{found.epoch_of_best:g}")
            table.add_row(key, f"{found.last:.4g}", *best)
    return table
