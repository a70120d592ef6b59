"""From the name of a data source to its rows, whatever the format.

A source is a file (``.parquet``, ``.jsonl``, ``.json``), ``NAME:SPLIT`` of a
plugin, or ``name[:split]`` on the Hugging Face hub. What the rows hold is not
looked at here; `skyrl_kernel.data.schema` does that.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
Resolve = Callable[[str], "pa.Table | None"]
"""Asks the plugins for a ``NAME:SPLIT``; None if it is nobody's."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^:/]+)?")


def read_source(source: str, resolve: Resolve | None = None) -> list[Row]:
    """All rows of one entry of ``data.train_data`` or ``data.val_data``.

    Args:
        source: A path (``~`` expands), ``NAME:SPLIT`` or ``name[:split]``.
        resolve: Asked first for everything that is no file.

    Raises:
        DataError: There is no such source, it cannot be read, or it is empty.
    """
    path = Path(os.path.expanduser(source))
    if path.suffix in _FORMATS or path.exists():
        rows = read_file(path)
    else:
        table = resolve(source) if resolve is not None and ":" in source else None
        rows = table.to_pylist() if table is not None else _read_hub(source)
    if not rows:
        raise DataError(f"data '{source}' has no rows; nothing can be trained or evaluated on it")
    return rows


def read_file(path: Path) -> list[Row]:
    """All rows of a file, by its suffix.

    Raises:
        DataError: The file is missing, of another type, or cannot be read.
    """
    if path.suffix not in _FORMATS:
        raise DataError(f"data file '{path}' is none of {', '.join(_FORMATS)}; convert it to one")
    if not path.is_file():
        raise DataError(
            f"data file '{path}' {'is no file' if path.exists() else 'does not exist'}{_hint(path)}"
        )
    return _FORMATS[path.suffix](path)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data file '{path}' cannot be read as parquet: {_line(error)}") from error
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    """One object per line. Blank lines do not count as rows."""
    rows: list[Row] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_parse(line, f"data file '{path}', line {number}"))
    return rows


def _read_json(path: Path) -> list[Row]:
    """A list of objects; or, under this suffix too, one object per line."""
    text = _read_text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        items = json.loads(text)
    except ValueError as error:
        raise DataError(f"data file '{path}' is not valid JSON: {error}") from error
    for index, item in enumerate(items):
        _check_object(item, f"data file '{path}', row {index}")
    rows: list[Row] = items
    return rows


_FORMATS: dict[str, Callable[[Path], list[Row]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}


def _read_hub(source: str) -> list[Row]:
    """A data set of the Hugging Face hub, through the ``datasets`` library."""
    if not _HUB_NAME.fullmatch(source):
        raise DataError(
            f"data '{source}': no such file. Files end with {', '.join(_FORMATS)}; other sources "
            "are NAME:SPLIT of a plugin, such as multiply:train, and name[:split] of the Hugging "
            "Face hub"
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data '{source}': no such file, and no selected plugin offers it. If it is a name on "
            "the Hugging Face hub, install what reads it: pip install datasets. If a plugin makes "
            "it, select the plugin: --plugin NAME"
        ) from error
    name, _, split = source.partition(":")
    try:
        table = datasets.load_dataset(name, split=split or "train").with_format("arrow")[:]
    except Exception as error:  # its builders, its HTTP client and its parsers raise their own
        raise DataError(
            f"data '{source}': no such file, no selected plugin offers it, and the Hugging Face "
            f"hub did not give it: {type(error).__name__}: {_line(error)}"
        ) from error
    rows: list[Row] = table.to_pylist()
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data file '{path}' cannot be read: {_line(error)}") from error


def _parse(text: str, where: str) -> Row:
    try:
        item = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    return _check_object(item, where)


def _check_object(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        raise DataError(
            f"{where} holds {type(item).__name__}; a row is an object with named columns"
        )
    return item


def _hint(path: Path) -> str:
    """What else there is, for a path that names no file."""
    folder = path.parent
    if not folder.is_dir():
        return (
            f" (nor does the folder '{folder}'). 'skyrl data' lists the data sets that can be made"
        )
    found = sorted(item.name for item in folder.iterdir() if item.suffix in _FORMATS)
    return f". Data files in '{folder}': {', '.join(found[:8]) or 'none'}"


def _line(error: BaseException) -> str:
    """The error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
