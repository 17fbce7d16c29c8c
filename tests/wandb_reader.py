"""Read back what Weights & Biases recorded offline."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2 as pb

from lightning_flatness.tracking.runs._wandb_records import Damage, put, records


class RecordedRun(NamedTuple):
    """One offline run; what was logged as a dictionary is one."""

    history: list[dict[str, Any]]  # one row per step
    summary: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, pb.MetricRecord]  # definitions by name, or by glob


def read_run(place: Path, timeout: float = 30.0) -> RecordedRun:
    """Read the only run at or below ``place``, once its end is written, which may be after ``finish`` returns."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = [record for path in _files(place) for record in records(path, Damage())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return _assemble(found)
        time.sleep(0.05)
    raise TimeoutError(f"no finished run below {place}")


def _files(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted({path.resolve() for path in place.rglob("*.wandb")})
    if len(files) > 1:
        raise ValueError(f"several runs: {', '.join(path.name for path in files)}")
    return files


def _assemble(found: list[pb.Record]) -> RecordedRun:
    run = RecordedRun([], {}, {}, {})
    for record in found:
        match record.WhichOneof("record_type"):
            case "history":
                run.history.append({})
                put(record.history.item, run.history[-1])
            case "summary":
                put(record.summary.update, run.summary)
            case "config":
                put(record.config.update, run.config)
            case "run":
                put(record.run.config.update, run.config)
            case "metric":
                run.metrics[record.metric.name or record.metric.glob_name] = record.metric
    return run
