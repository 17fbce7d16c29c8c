"""Read runs, whichever logger kept them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_flatness.tracking.runs._csv import read_csv_run
from lightning_flatness.tracking.runs._names import told_apart
from lightning_flatness.tracking.runs._places import WANDB_SUFFIX, run_files
from lightning_flatness.tracking.runs._twins import Found, each_fit_once
from lightning_flatness.tracking.runs._wandb_api import fetch_run
from lightning_flatness.tracking.runs.run import Run

_ON_A_SERVER = re.compile(r"[^/\\\s.~][^/\\\s]*(/[^/\\\s]+){2}")
_LOOKS = (
    "a run is a folder with `metrics.csv` (CSVLogger) or `run-….wandb` (Weights & Biases, offline), "
    "or `entity/project/run` on a Weights & Biases server"
)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read runs of Lightning's ``CSVLogger`` and ``WandbLogger``.

    A run that is found twice is read once, and a fit that both loggers have kept is one run. What cannot be read of a
    run is told in its ``notes``; nothing that the files hold is executed.

    Args:
        paths: folders of runs or above them, however deep; files ``metrics.csv`` or ``run-….wandb``; or, where there is
            no such path, ``entity/project/run`` on a Weights & Biases server.

    Returns:
        The runs in the order of ``paths``, with names that tell them apart: the display name in Weights & Biases,
        otherwise the folder, from what was given on.

    Raises:
        ValueError: if there is no run in one of the paths, or the server does not give it.
    """
    if not paths:
        raise ValueError(f"`paths` must name at least one run; {_LOOKS}.")
    found: list[Found] = []
    seen: set[Path] = set()
    empty: list[str] = []
    problems: list[str] = []
    for path in paths:
        place = _place(path)
        if not place.exists() and _ON_A_SERVER.fullmatch(path):
            try:
                found.append(Found(fetch_run(path), by_wandb=True))
            except ValueError as error:
                problems.append(str(error))
            continue
        files = list(run_files(place))
        if not files:
            empty.append(f"`{path}`" if place.exists() else f"`{path}` (no such path)")
        found += _not_seen(files, place, seen)
    if empty:
        problems.insert(0, f"No run in {', '.join(empty)}; {_LOOKS}.")
    if problems:
        raise ValueError(" ".join(problems))
    return told_apart(each_fit_once(found))


def _place(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~name of nobody here: a path that does not exist, or a folder of that name
        return Path(path)


def _not_seen(files: Sequence[Path], place: Path, seen: set[Path]) -> Iterator[Found]:
    for file in files:
        resolved = file.resolve()
        if resolved not in seen:
            seen.add(resolved)
            yield Found(_read(file, _name(file.parent, place)), by_wandb=file.suffix == WANDB_SUFFIX)


def _read(file: Path, name: str) -> Run:
    try:
        if file.suffix != WANDB_SUFFIX:
            return read_csv_run(file, name)
        from lightning_flatness.tracking.runs._wandb_offline import (  # noqa: PLC0415 - `wandb` takes a second
            read_offline_run,
        )

        return read_offline_run(file, name)
    except OSError as error:
        return Run(name, str(file.parent), [], notes=[f"{file.name} cannot be opened: {error.strerror}."])


def _name(folder: Path, place: Path) -> str:
    """The folder from what was given on; where it was given itself, its own name, of a version with the one above."""
    inner = folder.relative_to(place) if folder.is_relative_to(place) else Path()
    if inner.parts:
        return str(inner)
    parts = folder.resolve().parts
    return "/".join(parts[-2 if parts[-1].startswith("version_") else -1 :])
