"""A long fit with every monitor on leaves nothing behind: memory, files, threads, hooks and tensors stay as many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.callbacks.soak_run import EPOCHS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read from /proc")
def test_nothing_grows_over_300_epochs() -> None:
    # One arena, trimmed: what the allocator keeps for later would be counted as lost.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.callbacks.soak_run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    counted = json.loads(finished.stdout)
    early, late = counted["early"], counted["late"]
    for name in ("files", "threads", "hooks"):
        assert late[name] == early[name]
    assert late["tensors"] < 1.1 * early["tensors"], "one tensor more per epoch would be 200"
    assert late["mebibytes"] < 1.01 * early["mebibytes"]
    assert counted["lengths"] == [EPOCHS] * 5
