"""Read back what Weights & Biases recorded offline: LevelDB log framing around protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2 as pb

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4


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
        records = [record for path in _files(place) for record in _records(path)]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return _assemble(records)
        time.sleep(0.05)
    raise TimeoutError(f"no finished run below {place}")


def _files(place: Path) -> list[Path]:
    files = [place] if place.is_file() else sorted({path.resolve() for path in place.rglob("*.wandb")})
    if len(files) > 1:
        raise ValueError(f"several runs: {', '.join(path.name for path in files)}")
    return files


def _records(path: Path) -> Iterator[pb.Record]:
    data = path.read_bytes()
    position, message = 7, b""
    while position + _HEADER.size <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _HEADER.size:
            position += room
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        if kind == 0 and length == 0:
            position += room
            continue
        position += _HEADER.size
        if position + length > len(data):
            return
        message += data[position : position + length]
        position += length
        if kind in {_FULL, _LAST}:
            yield pb.Record.FromString(message)
            message = b""


def _assemble(records: list[pb.Record]) -> RecordedRun:
    run = RecordedRun([], {}, {}, {})
    for record in records:
        match record.WhichOneof("record_type"):
            case "history":
                run.history.append({})
                _put(record.history.item, run.history[-1])
            case "summary":
                _put(record.summary.update, run.summary)
            case "config":
                _put(record.config.update, run.config)
            case "run":
                _put(record.run.config.update, run.config)
            case "metric":
                run.metrics[record.metric.name or record.metric.glob_name] = record.metric
    return run


def _put(items: Any, into: dict[str, Any]) -> None:
    for item in items:
        *outer, name = item.nested_key or [item.key]
        place = into
        for key in outer:
            place = place.setdefault(key, {})
        place[name] = json.loads(item.value_json)
