"""Reads the files that wandb keeps of an offline run: which steps they hold.

The file is a log in LevelDB's format (after 7 bytes, blocks of 32 KiB with
parts of records), each record a protobuf message of wandb's.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER = 7
"""Bytes before the first block, and before each part: checksum, length, kind."""
_BLOCK = 32768
_WHOLE, _LAST = 1, 4
"""Kinds of a part with which a record is complete."""


def records(folder: Path, id: str) -> Iterator[Any]:
    """Every record of the run's offline files, in the order in which they would be sent.

    They are wandb's protobuf messages.
    """
    for path in sorted(folder.glob(f"wandb/offline-run-*-{id}*/*.wandb")):
        yield from records_of(path)


def records_of(path: Path) -> Iterator[Any]:
    """Every record of one file."""
    from wandb.proto import wandb_internal_pb2

    for data in _chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made at run time
        record.ParseFromString(data)
        yield record


def kept_steps(folder: Path, id: str) -> set[int]:
    """The steps that are in the files."""
    return {
        json.loads(item.value_json)
        for record in records(folder, id)
        for item in record.history.item
        if "_step" in {item.key, *item.nested_key}
    }


def is_finished(path: Path) -> bool:
    """True if the file is there to its end."""
    return path.exists() and any(record.HasField("exit") for record in records_of(path))


def _chunks(data: bytes) -> Iterator[bytes]:
    """The records; what a kill tore at the end is left out."""
    place, parts = _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += _HEADER
        parts += data[place : place + length]
        place += length
        if kind in {_WHOLE, _LAST} and place <= len(data):
            yield parts
            parts = b""
