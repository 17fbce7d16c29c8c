"""Where below a folder runs are."""

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_flatness.tracking.runs._csv import METRICS_FILE

WANDB_SUFFIX = ".wandb"


def run_files(place: Path) -> Iterator[Path]:
    """Find the files of runs, in natural order, each once.

    Links are followed last, so that a run is known by its own folder and not by ``latest-run``. Hidden folders, what is
    below the folder of a Weights & Biases run, and folders that cannot be opened are passed over.

    Args:
        place: a folder, or a file of a run.

    Yields:
        ``metrics.csv`` and ``*.wandb`` files.
    """
    if place.is_file():
        if _is_run_file(place):
            yield place
        return
    folders, links = [place], list[Path]()
    seen = set[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            resolved = folder.resolve()
            files, inner = _files_and_folders(folder)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle
            continue
        if resolved in seen:
            continue
        seen.add(resolved)
        yield from files
        if any(file.suffix == WANDB_SUFFIX for file in files):
            continue
        folders += [entry for entry in inner if not entry.is_symlink()]
        links += [entry for entry in inner if entry.is_symlink()]


def _files_and_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of runs in natural order, and folders that are not hidden in the reverse one.

    Also to ask what an entry is may be forbidden: where a folder may be listed and not entered.
    """
    entries = sorted(folder.iterdir(), key=_natural)
    files = [entry for entry in entries if _is_run_file(entry)]
    return files, [entry for entry in reversed(entries) if not entry.name.startswith(".") and entry.is_dir()]


def _is_run_file(path: Path) -> bool:
    return (path.name == METRICS_FILE or path.suffix == WANDB_SUFFIX) and path.is_file()


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """``version_2`` stands before ``version_10``."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(part.isdigit(), int(part) if index % 2 else 0, part) for index, part in enumerate(parts)]
