"""Queries that nobody has read, on files that must not change and in time that must not run out.

Runs inside the sandbox, with the standard library alone: `answer` is what a worker serves.

The connection cannot write, whatever the query says: the file is opened read-only, and
an authorizer allows reading this one database and nothing else. ``ATTACH`` would open,
or make, any other file. A progress handler ends what takes too long, in most cases: it
is asked between two steps of SQLite, and there are functions of which one call takes
for ever or takes all memory. Against those stands the sandbox.
"""

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = tuple[object, ...]

RIGHT = "right"
"""The verdict on a solution with the rows of the reference."""
MAX_CHARS = 9000
"""A longer table is shown by its first rows only."""
MAX_ROWS = 50
"""As many."""

_WRONG = (sqlite3.Error, sqlite3.Warning, ValueError)
"""What a wrong query raises: Warning is for a second statement, ValueError for half a character."""
_STEPS = 20_000
"""Of SQLite's virtual machine between two looks at the clock: some tenths of a millisecond."""
_WALL_FACTOR = 1.5
"""Times the limit of processor time may pass on the clock: waiting for a disk is no work."""

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 16 * 2**20,  # bytes of one value or row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,  # its cost is that times the text's length
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
_SCHEMA_PRAGMAS = {
    *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"),
    "foreign_key_list",
}


class QueryTimeoutError(Exception):
    """The query took longer than it may."""


class DatabaseError(Exception):
    """What should be a database cannot be read, whatever the query."""


class BadReferenceError(Exception):
    """The row's own query does not run."""


def answer(request: Mapping[str, Any]) -> str:
    """Try a query (``sql``), run a reference (``reference``), or judge a ``solution`` by it.

    Returns:
        What the model sees of a query that was tried, or the verdict on the solution.

    Raises:
        DatabaseError: ``file`` is no database that can be read.
        BadReferenceError: The reference does not run.
    """
    with contextlib.suppress(MemoryError):
        return _answer(request)
    _reference_rows.cache_clear()  # what is kept of earlier rows may be what was too much
    try:
        return _answer(request)
    except MemoryError:
        too_much = "it takes too much memory"
        if "sql" in request:
            return f"Error executing SQL: {too_much}"
        if "solution" in request:
            return f"error: {too_much}"
        raise _bad_reference(Path(request["file"]), request["reference"], too_much) from None


def _answer(request: Mapping[str, Any]) -> str:
    file, timeout_s = Path(request["file"]), request["timeout_s"]
    _require_database(file)
    if "sql" in request:
        return _try(file, request["sql"], timeout_s)
    expected = _reference_rows(file, request["reference"], timeout_s)
    return _judge(file, request["solution"], expected, timeout_s) if "solution" in request else ""


def _try(file: Path, sql: str, timeout_s: float) -> str:
    try:
        with run_query(file, sql, timeout_s) as cursor:
            return show_rows(cursor)
    except QueryTimeoutError:
        return f"SQL Timeout:\n{sql}"
    except _WRONG as error:
        return f"Error executing SQL: {error}"


def _judge(file: Path, solution: str, expected: frozenset[Row], timeout_s: float) -> str:
    try:
        return RIGHT if has_same_rows(file, solution, expected, timeout_s) else "other rows"
    except QueryTimeoutError:
        return "timeout"
    except _WRONG as error:
        return f"error: {error}"


@functools.lru_cache(maxsize=16)  # the samples of a group share it; few, as rows may be many
def _reference_rows(file: Path, sql: str, timeout_s: float) -> frozenset[Row]:
    try:
        return fetch_distinct(file, sql, timeout_s)
    except (QueryTimeoutError, *_WRONG) as error:
        raise _bad_reference(file, sql, str(error)) from error


def _bad_reference(file: Path, sql: str, why: str) -> BadReferenceError:
    return BadReferenceError(
        f"the reference query of this row does not run on '{file.name}', so no answer can be "
        f"judged: {why}. Query: {sql[:200]}"
    )


@functools.lru_cache(maxsize=4096)
def _require_database(file: Path) -> None:
    try:
        fetch_distinct(file, "SELECT name FROM sqlite_master", 60.0)
    except (QueryTimeoutError, sqlite3.Error) as error:
        raise DatabaseError(f"cannot read the database '{file}': {error}") from error


@contextlib.contextmanager
def run_query(file: Path, sql: str, timeout_s: float) -> Iterator[sqlite3.Cursor]:
    """Run a query; reading the cursor's rows is part of running it.

    Args:
        file: The database. It must not be changed meanwhile; what another program has left
            in a write-ahead log beside it is not seen.
        sql: One statement that reads.
        timeout_s: Processor time of this thread.

    Raises:
        QueryTimeoutError: It took longer.
        sqlite3.Error: SQLite refuses it: wrong syntax, no such table, not allowed.
    """
    is_late = False

    def look() -> bool:
        nonlocal is_late
        is_late = time.thread_time() >= end or time.monotonic() >= wall_end
        return is_late

    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(_authorize)
        connection.set_progress_handler(look, _STEPS)
        end = time.thread_time() + timeout_s
        wall_end = time.monotonic() + _WALL_FACTOR * timeout_s
        yield connection.execute(sql)
    except sqlite3.OperationalError as error:
        if is_late:
            raise QueryTimeoutError(f"it took longer than {timeout_s:g} s") from error
        raise
    finally:
        connection.close()


def fetch_distinct(file: Path, sql: str, timeout_s: float) -> frozenset[Row]:
    """All rows, each once; see `run_query`."""
    with run_query(file, sql, timeout_s) as cursor:
        return frozenset(cursor)


def has_same_rows(file: Path, sql: str, expected: frozenset[Row], timeout_s: float) -> bool:
    """True if the query's distinct rows are the expected ones, in any order; see `run_query`.

    Reading stops at the first row that is not expected, so the memory it takes is that
    of the expected rows, however many there are.
    """
    seen: set[Row] = set()
    with run_query(file, sql, timeout_s) as cursor:
        for row in cursor:
            if row not in expected:
                return False
            seen.add(row)
    return len(seen) == len(expected)


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, source: str | None
) -> int:
    if action == sqlite3.SQLITE_FUNCTION:
        is_fine = second not in _FORBIDDEN_FUNCTIONS
    elif action == sqlite3.SQLITE_PRAGMA:
        is_fine = (first or "").lower() in _SCHEMA_PRAGMAS
    else:
        is_fine = action in _READING
    return sqlite3.SQLITE_OK if is_fine else sqlite3.SQLITE_DENY


def show_rows(cursor: sqlite3.Cursor) -> str:
    """The distinct rows in the query's own order as a table, as many as there is room for.

    Example:
        >>> sql = "SELECT 1 AS n, 'one' AS name UNION SELECT 20, NULL"
        >>> print(show_rows(sqlite3.connect(":memory:").execute(sql)))
         n  name
         1   one
        20  NULL
    """
    rows: dict[Row, None] = {}
    num_chars = 0
    for row in cursor:
        if row not in rows:
            rows[row] = None
            num_chars += sum(len(_shown(value)) + 1 for value in row)
            if num_chars > MAX_CHARS and len(rows) > MAX_ROWS:
                break
    if not rows:
        return "The query has no rows."
    header = tuple(column[0] for column in cursor.description)
    table = _aligned([header, *rows])
    if len(table) <= MAX_CHARS:
        return table
    first = _aligned([header, *list(rows)[:MAX_ROWS]])
    if len(first) > MAX_CHARS:
        first = f"{first[:MAX_CHARS]}…"
    return f"Truncated to {MAX_ROWS} lines since returned response too long:\n{first}"


def _aligned(rows: Sequence[Row]) -> str:
    lines = [[_shown(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _shown(value: object) -> str:
    return "NULL" if value is None else str(value)
