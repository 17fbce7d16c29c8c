"""What remains of a fit whose process is killed or interrupted, and how it is resumed."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lightning_flatness.tracking.csv_log import read_epochs
from lightning_flatness.tracking.runs import read_runs
from tests import processes
from tests.callbacks.fault_run import EPOCHS, FAULTY, entry
from tests.processes import finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # processes share the cores with whatever else runs

PLACES = ["training", "validation", "attack", "checkpoint"]
Row = dict[str, float]


class Ended(NamedTuple):
    """What a process left behind."""

    code: int | None
    folder: Path
    found: dict[str, Any]  # empty where it could write nothing


Start = Callable[..., Ended]


@pytest.fixture(scope="session")
def start() -> Start:
    """Run fits in processes of their own."""

    def run(folder: Path, name: str, place: str = "", sent: signal.Signals = signal.SIGKILL, **settings: Any) -> Ended:
        folder.mkdir(exist_ok=True)
        arguments = {"folder": folder, "name": name, "place": place, "sent": sent, "resumes": False, **settings}
        code = finished(processes.start(entry, arguments, output=folder / f"{name}.log"))
        file = folder / f"{name}.json"
        return Ended(code, folder, json.loads(file.read_text()) if file.exists() else {})

    return run


@pytest.fixture(scope="session")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A fit that nothing happens to."""
    ended = start(tmp_path_factory.mktemp("whole") / "run", "whole")
    assert ended.code == 0, (ended.folder / "whole.log").read_text()
    return ended


def csv_rows(folder: Path, version: int) -> list[Row]:
    """Epochs in a log, with what the monitors have logged and is the same in every run."""
    epochs = read_epochs(folder / f"lightning_logs/version_{version}/metrics.csv")
    return [row for row in map(ours, epochs) if len(row) > 1]


def ours(row: Mapping[str, Any]) -> Row:
    """What monitors have logged as numbers and is the same in every run, and the epoch."""
    groups = ("flatness", "sharpest", "attack", "masking", "trajectory", "scaling", "bound")
    return {
        name: value
        for name, value in row.items()
        if name == "epoch" or (name.split("/")[0] in groups and not name.endswith("_seconds"))
    }


def by_epoch(rows: list[Row]) -> dict[int, Row]:
    return {int(row["epoch"]): row for row in rows}


@pytest.mark.parametrize("place", PLACES)
def test_killed_fit_goes_on_as_if_nothing_had_happened(place: str, start: Start, whole: Ended, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, "killed", place).code == -signal.SIGKILL
    resumed = start(folder, "resumed", resumes=True)
    assert resumed.code == 0, (folder / "resumed.log").read_text()
    assert resumed.found["history"] == whole.found["history"]
    assert resumed.found["state"]["weights"] == whole.found["state"]["weights"]
    # Each of the two logs begins where its process did; what is in both was measured twice, with the same values.
    first, second, expected = (by_epoch(rows) for rows in (csv_rows(folder, 0), csv_rows(folder, 1), whole_rows(whole)))
    assert {**first, **second} == expected
    assert {**second, **first} == expected
    assert list(second)[-1] == EPOCHS - 1


def whole_rows(whole: Ended) -> list[Row]:
    return csv_rows(whole.folder, 0)


def test_logged_rows_are_those_of_the_history(whole: Ended) -> None:
    history: dict[int, Row] = {}
    for rows in whole.found["history"].values():
        for row in rows:
            history.setdefault(row["epoch"], {}).update(ours(row))
    logged = by_epoch(whole_rows(whole))
    assert logged.keys() == history.keys()
    for epoch, row in history.items():
        assert logged[epoch] == pytest.approx(row, rel=1e-6)


def test_killed_fit_goes_on_in_weights_and_biases(start: Start, whole: Ended, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(folder, "killed", "attack", logger="wandb").code == -signal.SIGKILL
    resumed = start(folder, "resumed", resumes=True, logger="wandb")
    assert resumed.code == 0, (folder / "resumed.log").read_text()
    assert resumed.found["history"] == whole.found["history"]
    # The client writes blocks of 32 KiB: what was in the last one when it was killed is in the checkpoint alone.
    runs = [[ours(row) for row in run.epochs] for run in read_runs([str(folder / "wandb")])]
    killed, second, expected = (by_epoch([row for row in rows if len(row) > 1]) for rows in (*runs, whole_rows(whole)))
    assert second == {epoch: row for epoch, row in expected.items() if epoch >= FAULTY}
    assert killed == {epoch: row for epoch, row in expected.items() if epoch in killed}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_interrupted_attack_ends_the_fit_as_without_monitors(
    sent: signal.Signals, start: Start, whole: Ended, tmp_path: Path
) -> None:
    alone = start(tmp_path / "alone", "alone", "validation", sent, watched=False)
    watched = start(tmp_path / "watched", "watched", "attack", sent)
    assert watched.code == alone.code
    assert {**watched.found, "history": {}} == alone.found
    assert watched.found["state"]["hooks"] == 0
    for group, rows in watched.found["history"].items():
        assert rows == [row for row in whole.found["history"][group] if row["epoch"] < FAULTY]
    assert csv_rows(watched.folder, 0) == whole_rows(whole)[:FAULTY]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for what a run begins with, and little more."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:  # noqa: S603 - a constant command
        pytest.skip("only the superuser may mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # noqa: S603, S607 - likewise


def test_full_disk_below_weights_and_biases_ends_no_fit(
    start: Start, whole: Ended, tmp_path: Path, full_disk: Path
) -> None:
    ended = start(tmp_path / "run", "full", logger="wandb", logs=full_disk)
    free = shutil.disk_usage(full_disk).free
    log = (ended.folder / "full.log").read_text()
    assert free < 8192, log
    assert ended.code == 0, log
    assert {**ended.found, "random": 0} == {**whole.found, "random": 0}
