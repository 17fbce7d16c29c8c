"""The table that ends a fit."""

from collections.abc import Iterable, Mapping
from typing import Any
from warnings import warn

from lightning.pytorch.trainer.states import TrainerFn


def print_fit_summary(history: Iterable[Mapping[str, Any]], texts: Mapping[str, str]) -> None:
    """Print what monitors have measured in a fit; nothing where they measured nothing.

    What cannot be printed costs a warning, whatever the reason: the fit is over, and what follows it matters more.

    Args:
        history: rows of all monitors.
        texts: key → words.
    """
    try:
        _print(history, texts)
    except Exception as error:
        warn(f"The table of what the monitors measured is not printed: {type(error).__name__}: {error}", stacklevel=2)


def _print(history: Iterable[Mapping[str, Any]], texts: Mapping[str, str]) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to import

    from lightning_flatness.tracking.fit_summary import fit_summary  # noqa: PLC0415 - slow to import
    from lightning_flatness.tracking.runs import Run  # noqa: PLC0415 - slow to import

    validations: dict[tuple[int, int], dict[str, float]] = {}
    for row in history:
        if row["stage"] == TrainerFn.FITTING.value:
            values = {key: float(value) for key, value in row.items() if key not in {"stage", "step"}}
            validations.setdefault((row["epoch"], row["step"]), {}).update(values)
    table = fit_summary(Run("fit", "", [validations[place] for place in sorted(validations)], texts=texts))
    if not table.row_count:
        return
    console = Console()
    # Printed by hand: where nobody reads any more, the console would end the process.
    with console.capture() as capture:
        console.print(table)
    text = capture.get().encode(console.encoding, "replace").decode(console.encoding)
    console.file.write(text)
    console.file.flush()
