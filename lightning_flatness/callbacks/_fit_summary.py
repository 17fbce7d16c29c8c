"""The table that ends a fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from lightning_flatness.tracking.fit_summary import fit_summary
from lightning_flatness.tracking.runs import Run


def print_fit_summary(histories: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Print what several monitors have measured in a fit; nothing where they measured nothing.

    Args:
        histories: of each monitor.
    """
    from rich.console import Console  # noqa: PLC0415 - slow to import

    epochs: dict[int, dict[str, float]] = {}
    for row in (row for history in histories for row in history if row["stage"] == TrainerFn.FITTING.value):
        values = {key: float(value) for key, value in row.items() if key not in {"stage", "step"}}
        epochs.setdefault(row["epoch"], {}).update(values)
    table = fit_summary(Run("fit", "", [epochs[epoch] for epoch in sorted(epochs)]))
    if table.row_count:
        Console().print(table)
