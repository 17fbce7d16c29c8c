"""Runs on a Weights & Biases server."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_flatness.tracking._epochs import EpochRows
from lightning_flatness.tracking.runs._wandb_values import numbers, settings, texts
from lightning_flatness.tracking.runs.run import Run
from lightning_flatness.tracking.wandb_run import has_wandb_key


def fetch_run(path: str) -> Run:
    """Fetch a run with its whole history.

    Args:
        path: ``entity/project/run``.

    Raises:
        ValueError: if there is no key, or the server does not give the run.
    """
    if not has_wandb_key():
        raise ValueError(f"`{path}` is no path here, and Weights & Biases needs a key: run `wandb login`.")
    import wandb  # noqa: PLC0415 - takes a second, and most runs are files

    try:
        run = wandb.Api().run(path)
        return run_from_server(run.scan_history(), dict(run.config), dict(run.summary), name=run.name, path=path)
    except Exception as error:
        # it lets through errors of its own, of requests and of the decoding
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"`{path}` is no path here, and Weights & Biases does not give it: {words}") from error


def run_from_server(
    history: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    name: str | None,
    path: str,
) -> Run:
    """Make a run of what the server answers.

    Args:
        history: rows of ``scan_history``; a key that was not logged in a step may be None in it.
        config: of the run.
        summary: of the run.
        name: display name, or None.
        path: ``entity/project/run``.
    """
    rows = EpochRows()
    for row in history:
        rows.add(numbers(row))
    epochs, flat_config = rows.in_order(), settings(config)
    notes = [*rows.notes(), *flat_config.notes, *([] if epochs else ["The run has no values."])]
    return Run(name or path, path, epochs, flat_config.values, texts(summary), notes)
