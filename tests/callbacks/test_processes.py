"""Processes that wait for each other are stopped, and their test fails."""

from pathlib import Path
from time import monotonic

import pytest

from tests.callbacks.processes import found_by, run_processes

WAITING = "tests.callbacks.waiting_run"


def test_waiting_processes_are_stopped_when_the_time_is_up(tmp_path: Path) -> None:
    start = monotonic()
    run_processes(WAITING, tmp_path, seconds=5)
    assert 5 <= monotonic() - start < 30
    assert found_by(tmp_path, "begun") == [{}, {}]
    with pytest.raises(pytest.fail.Exception, match=r"failed in 'ended' or wait for each other:\nwaits\n\nwaits"):
        found_by(tmp_path, "ended")


def test_the_others_are_stopped_when_one_fails(tmp_path: Path) -> None:
    start = monotonic()
    run_processes(WAITING, tmp_path, "fail", seconds=120)
    assert monotonic() - start < 60
    with pytest.raises(pytest.fail.Exception, match="this process has failed"):
        found_by(tmp_path, "begun")
