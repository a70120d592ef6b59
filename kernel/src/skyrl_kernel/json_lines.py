"""One JSON object per line, strictly valid, whatever the numbers are.

JSON has no NaN and no infinity. Here they are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, so that every reader of the files can parse
every line; `number` turns them back.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_PARTING = "\0"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dump_line(record: Mapping[str, Any]) -> str:
    r"""One line of JSON, its newline included; keys keep their order.

    numpy scalars and arrays become numbers and lists, dataclasses objects, sets
    sorted lists; whatever else JSON does not know becomes its ``str``.

    Example:
        >>> dump_line({"step": 3, "loss": float("nan")})
        '{"step": 3, "loss": "NaN"}\n'
    """
    try:
        text = _ENCODER.encode(record)
    except (TypeError, ValueError):  # something that JSON does not know
        return _ENCODER.encode(_plain(record)) + "\n"
    return (text if text.isascii() else _ENCODER.encode(_plain(record))) + "\n"


def dump_each(records: Sequence[Any]) -> list[str]:
    r"""Each as `dump_line` writes it, without the newline; in a third of the time.

    Example:
        >>> dump_each([{"a": 1}, {}])
        ['{"a": 1}', '{}']
    """
    # One call encodes all, with a text between any two at which the whole is taken apart again.
    parted = [part for record in records for part in (record, _PARTING)]
    try:
        text = _ENCODER.encode(parted[:-1])
    except (TypeError, ValueError):  # something that JSON does not know
        text = ""
    parts = text[1:-1].split(f", {_ENCODER.encode(_PARTING)}, ")
    if len(parts) == len(records) and text.isascii():  # more if a record holds the text itself
        return parts
    return [dump_line(record)[:-1] for record in records]


def number(value: Any) -> Any:
    """``value``, or the float that `dump_line` wrote as a string.

    Example:
        >>> number("-Infinity"), number(0.5), number("text")
        (-inf, 0.5, 'text')
    """
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


class LineFile:
    """A file that lines are appended to; opened with the first one.

    Args:
        path: Made if it is missing; its folder must be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append the records, all of them or none.

        They have reached the operating system on return, so that killing this
        process loses nothing. Where writing fails half-way (disk full), the file is
        cut back to what it held before.
        """
        data = "".join([dump_line(record) for record in records]).encode()
        if not data:
            return
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self._file.truncate(size)
            raise

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append the records to the file, all of them or none: a `LineFile` used once."""
    file = LineFile(path)
    try:
        file.append(records)
    finally:
        file.close()


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each complete line as it stands in the file, and parsed.

    A line that a kill tore (no newline, or no JSON object) is left out. A
    missing file has no lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield line, record


def _plain(value: Any) -> Any:
    """``value`` in the types that JSON knows."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value) if value.isascii() else str(value).encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy
        return _plain(value.tolist())
    return _plain(str(value))
