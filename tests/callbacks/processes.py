"""Several processes that run a module of the tests together, and are stopped where they wait for each other."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import finished, run_module, start


def run_processes(module: str, folder: Path, *arguments: str, count: int = 2, seconds: float = 540) -> None:
    """Run ``python -m module folder *arguments`` in every process until they end, one fails or the time is up.

    What they print is in ``folder``, in a file for each rank.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0", "WORLD_SIZE": str(count)}
    processes = [
        start(
            run_module,
            module,
            str(folder),
            *arguments,
            output=folder / f"{rank}.log",
            environment={**place, "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    end = time.monotonic() + seconds
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):  # one has failed: the others would wait for it
            break
        time.sleep(0.1)
    for process in processes:
        finished(process, 0)


def found_by(folder: Path, scenario: str, count: int = 2) -> list[dict[str, Any]]:
    """What every process has found; fails where one of them has not got through."""
    files = [folder / f"{scenario}.{rank}.json" for rank in range(count)]
    if not all(file.exists() for file in files):
        logs = "\n".join((folder / f"{rank}.log").read_text()[-2000:] for rank in range(count))
        pytest.fail(f"the processes failed in {scenario!r} or wait for each other:\n{logs}")
    return [json.loads(file.read_text()) for file in files]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
