"""One JSON object per line, strictly valid, whatever the numbers are.

JSON has no NaN and no infinity. Here they are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, so that every reader of the files can parse
every line; `number` turns them back.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dump_line(record: Mapping[str, Any]) -> str:
    r"""One line of JSON, its newline included; keys keep their order.

    numpy scalars and arrays become numbers and lists, dataclasses objects, sets
    sorted lists; whatever else JSON does not know becomes its ``str``.

    Example:
        >>> dump_line({"step": 3, "loss": float("nan")})
        '{"step": 3, "loss": "NaN"}\n'
    """
    return json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def number(value: Any) -> Any:
    """``value``, or the float that `dump_line` wrote as a string.

    Example:
        >>> number("-Infinity"), number(0.5), number("text")
        (-inf, 0.5, 'text')
    """
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append the records to the file, all of them or none.

    They have reached the operating system on return, so that killing this
    process loses nothing. Where writing fails half-way (disk full), the file is
    cut back to what it held before.
    """
    data = "".join(dump_line(record) for record in records).encode()
    if not data:
        return
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to report
                file.truncate(size)
            raise


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
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode()
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
