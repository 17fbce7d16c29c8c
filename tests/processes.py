"""Processes of their own, forked from a server that has imported the library once: an import takes seconds."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["lightning_flatness.cli", "wandb"])


def start(
    target: Callable[..., object],
    *arguments: object,
    output: Path,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a process on one thread, with no account in reach.

    Args:
        target: what it calls, from a module that it can import.
        arguments: of the call.
        output: file of what it prints, errors included.
        folder: where it works.
        environment: variables beside those of this process.

    Returns:
        The process.
    """
    # A process inherits more than settings: the service that records the runs of other tests.
    variables = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    variables |= {"OMP_NUM_THREADS": "1", **(environment or {})}
    process = _SERVER.Process(target=_enter, args=(target, arguments, output, folder, variables))
    process.start()
    return process


def finished(process: BaseProcess, seconds: float = 280) -> int | None:
    """Exit code of a process; -9 where the time was up."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def run_module(module: str, *arguments: str) -> None:
    """Do what ``python -m module *arguments`` does."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _enter(
    target: Callable[..., object], arguments: tuple[Any, ...], output: Path, folder: Path, variables: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    target(*arguments)
