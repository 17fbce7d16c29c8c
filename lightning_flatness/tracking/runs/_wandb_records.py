"""The file in which Weights & Biases records a run: LevelDB log framing around protobuf records."""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2 as pb

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_START = b":W&B"
_START_LENGTH = 7  # with a magic number and a version
_Chunk = tuple[int, bytes]


@dataclass
class Damage:
    """What is wrong with a file, as far as it has been read.

    Attributes:
        parts: number of parts that cannot be read.
        is_cut: whether it ends in the middle of a record.
        is_foreign: whether it is no such file at all.
    """

    parts: int = 0
    is_cut: bool = False
    is_foreign: bool = False


def records(path: Path, damage: Damage) -> Iterator[Any]:
    """Read the records one by one, as far as their checksums are right.

    Args:
        path: a ``.wandb`` file, which may still be written.
        damage: is told what is wrong with it.

    Yields:
        Records in the order in which they were written.
    """
    with path.open("rb") as file:
        for message in _messages(_chunks(file, damage), damage):
            try:
                yield pb.Record.FromString(message)  # type: ignore[attr-defined]  # made at run time
            except DecodeError:
                damage.parts += 1


def put(items: Iterable[Any], into: dict[str, Any]) -> None:
    """Write the items of a record over those of earlier ones; what was logged as a dictionary is one.

    Args:
        items: with ``key`` or ``nested_key``, and ``value_json``; those that are no JSON are passed over.
        into: changed in place.
    """
    for item in items:
        *outer, name = item.nested_key or [item.key]
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
        place = into
        for key in outer:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[name] = value


def _messages(chunks: Iterable[_Chunk], damage: Damage) -> Iterator[bytes]:
    """Put the chunks of each record together."""
    message: bytearray | None = None  # of the record that has begun
    for kind, data in chunks:
        if kind in {_FULL, _FIRST}:
            damage.parts += message is not None
            message = bytearray(data)
        elif message is not None and kind in {_MIDDLE, _LAST}:
            message += data
        else:
            # the rest of a record whose beginning is lost, or no kind at all
            damage.parts += message is not None or kind not in {_MIDDLE, _LAST}
            message = None
        if message is not None and kind in {_FULL, _LAST}:
            yield bytes(message)
            message = None
    damage.is_cut |= message is not None


def _chunks(file: BinaryIO, damage: Damage) -> Iterator[_Chunk]:
    """Take the blocks apart; after a damaged chunk, go on with the next block."""
    block = file.read(_BLOCK)
    damage.is_foreign = not block.startswith(_START)
    position = _START_LENGTH
    while block and not damage.is_foreign:
        yield from _chunks_of_block(block, position, damage)
        block, position = file.read(_BLOCK), 0


def _chunks_of_block(block: bytes, position: int, damage: Damage) -> Iterator[_Chunk]:
    while position + _HEADER.size <= len(block):
        checksum, length, kind = _HEADER.unpack_from(block, position)
        if kind == length == 0:  # the rest of the block is unused
            return
        start, position = position, position + _HEADER.size + length
        if len(block) < position <= _BLOCK:
            damage.is_cut = True
            return
        # the checksum is that of the kind and the data
        if position > _BLOCK or zlib.crc32(block[start + _HEADER.size - 1 : position]) != checksum:
            yield 0, b""
            return
        yield kind, block[start + _HEADER.size : position]
    damage.is_cut |= position < len(block) < _BLOCK
