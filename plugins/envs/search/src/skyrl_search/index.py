"""A corpus of documents and its full-text index: SQLite's FTS5, ranked by BM25.

The corpus is a file of JSON lines and stays where the documents are read from;
the index beside it holds words only. It is made once, aside, and again when the
corpus has changed.

Searching costs some microseconds for every document that a word of the query
stands in. So words are taken from the rarest on until that number of documents
is reached: in a large corpus the frequent ones, which say least, are left out.
"""

import contextlib
import json
import os
import queue
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import DataError, is_disk_full

MAX_POSTINGS = 100_000
"""Documents that the words of a query may stand in, summed over the words."""
_MAX_WORDS = 64
"""Words of a query that are looked at."""
_TOKENIZER = "porter unicode61 remove_diacritics 2"
_FORMAT = "1"
"""Of the index; another one is made anew."""
_FREQUENT = 1000
"""Words in fewer documents need no count: they are always searched for."""
_WORD = re.compile(r"[^\W_]+")
_CHUNK_BYTES = 16_384
_REPORT_DOCUMENTS = 10_000

OnProgress = Callable[[int, int, int], None]
"""(documents, bytes, bytes of the whole corpus) read so far; also once at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One document that a search found."""

    document: dict[str, Any]
    """``contents``, and ``id`` where the corpus has one."""
    score: float
    """BM25, larger is better."""


class Index:
    """Searches a corpus; safe to use from many threads.

    Args:
        corpus: JSON lines with ``contents``, or with ``text`` and perhaps ``title``.
        file: The index, made by `build_index`.
        max_postings: See `MAX_POSTINGS`.
    """

    def __init__(self, corpus: Path, file: Path, max_postings: int = MAX_POSTINGS) -> None:
        self._max_postings = max_postings
        self._corpus = os.open(corpus, os.O_RDONLY)
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        for _ in range(os.cpu_count() or 1):
            self._idle.put(_connect(file))
        with self._connection() as connection:
            self.num_documents = int(_facts(connection)["documents"])
            """Documents of the corpus."""

    def search(self, query: str, topk: int) -> list[Hit]:
        """The best documents of a query, best first; none if no word of it is in the corpus."""
        with self._connection() as connection:
            words = self._words(connection, query)
            if not words:
                return []
            found = connection.execute(
                "SELECT rowid, rank FROM documents WHERE documents MATCH ? ORDER BY rank LIMIT ?",
                (" OR ".join(f'"{word}"' for word in words), topk),
            ).fetchall()
        return [Hit(document=self._document(place), score=-rank) for place, rank in found]

    def close(self) -> None:
        """Close the files. Call when no search is running."""
        os.close(self._corpus)
        while not self._idle.empty():
            self._idle.get().close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One of as many connections as there are cores; waits for a free one."""
        connection = self._idle.get()
        try:
            yield connection
        finally:
            self._idle.put(connection)

    def _words(self, connection: sqlite3.Connection, query: str) -> list[str]:
        """The words to search for: from the rarest on, as many as `max_postings` allows."""
        words = list(dict.fromkeys(_WORD.findall(query.lower())))[:_MAX_WORDS]
        connection.executemany(
            "INSERT INTO temp.words (rowid, word) VALUES (?, ?)", enumerate(words)
        )
        counted = connection.execute(
            "SELECT doc, coalesce(frequent.documents, 0) AS number FROM temp.stems "
            "LEFT JOIN frequent USING (term) GROUP BY doc ORDER BY number"
        ).fetchall()
        connection.execute("DELETE FROM temp.words")
        chosen: list[str] = []
        postings = 0
        for place, number in counted:
            postings += number
            if chosen and postings > self._max_postings:
                break
            chosen.append(words[place])
        return chosen

    def _document(self, place: int) -> dict[str, Any]:
        line = b""
        while b"\n" not in line:
            chunk = os.pread(self._corpus, _CHUNK_BYTES, place + len(line))
            if not chunk:
                break
            line += chunk
        row = json.loads(line.split(b"\n", 1)[0])
        return {key: row[key] for key in ("id",) if key in row} | {"contents": contents_of(row)}


def open_index(
    corpus: Path,
    file: Path | None = None,
    *,
    on_progress: OnProgress = lambda *_: None,
    max_postings: int = MAX_POSTINGS,
) -> Index:
    """The index of a corpus, made first if it is not there or the corpus has changed.

    Args:
        corpus: The documents.
        file: The index; default: ``CORPUS.fts5`` beside the corpus.
        on_progress: Called while the index is made.
        max_postings: See `MAX_POSTINGS`.

    Raises:
        DataError: The corpus is missing or has a line that is no document, or
            the index cannot be written.
    """
    if not corpus.is_file():
        raise DataError(f"corpus '{corpus}': no such file; name a file of JSON lines")
    file = file or corpus.with_name(f"{corpus.name}.fts5")
    if not _is_current(corpus, file):
        build_index(corpus, file, on_progress)
    return Index(corpus, file, max_postings)


def build_index(corpus: Path, file: Path, on_progress: OnProgress = lambda *_: None) -> None:
    """Make the index: written aside, then put in its place.

    Raises:
        DataError: See `open_index`.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with contextlib.closing(sqlite3.connect(aside, isolation_level=None)) as connection:
            _fill(connection, corpus, on_progress)
        os.replace(aside, file)
    except (OSError, sqlite3.OperationalError) as error:
        if is_disk_full(error):
            raise
        raise DataError(
            f"index '{file}' cannot be written: {error}; name another place: --index FILE"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def read_corpus(corpus: Path) -> Iterator[tuple[int, str]]:
    """(place in the file in bytes, text) of every document; empty lines are passed over.

    Raises:
        DataError: A line is no JSON object with a text; names file and line.
    """
    place = 0
    with corpus.open("rb") as lines:
        for number, line in enumerate(lines):
            if not line.isspace():
                where = f"corpus '{corpus}', line {number} (from 0)"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is not JSON: {error}") from error
                try:
                    yield place, contents_of(row)
                except ValueError as error:
                    raise DataError(f"{where}: {error}") from error
            place += len(line)


def contents_of(row: Any) -> str:
    r"""The text of a document, its title in quotation marks before it, as Search-R1 writes it.

    Raises:
        ValueError: There is none.

    Example:
        >>> contents_of({"title": "Pear", "text": "A fruit."})
        '"Pear"\nA fruit.'
    """
    if isinstance(row, dict):
        if isinstance(row.get("contents"), str):
            return str(row["contents"])
        if isinstance(row.get("text"), str):
            return f'"{row["title"]}"\n{row["text"]}' if row.get("title") else str(row["text"])
    found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise ValueError(
        "a document needs the field contents, or text and perhaps title, as text; "
        f"found: {found or 'none'}"
    )


def _fill(connection: sqlite3.Connection, corpus: Path, on_progress: OnProgress) -> None:
    state = _state(corpus)
    size = corpus.stat().st_size
    # Nobody else sees the file before it is whole: no journal, no waiting for the disk.
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(
        f"CREATE VIRTUAL TABLE documents USING fts5 (contents, content='', tokenize='{_TOKENIZER}')"
    )
    count = 0

    def rows() -> Iterator[tuple[int, str]]:
        nonlocal count
        for place, text in read_corpus(corpus):
            if count % _REPORT_DOCUMENTS == 0:
                on_progress(count, place, size)
            count += 1
            yield place, text

    connection.execute("BEGIN")
    connection.executemany("INSERT INTO documents (rowid, contents) VALUES (?, ?)", rows())
    if not count:
        raise DataError(f"corpus '{corpus}' holds no document; write one JSON object a line")
    connection.execute("INSERT INTO documents (documents) VALUES ('optimize')")
    connection.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab (main, documents, row)")
    connection.execute("CREATE TABLE frequent (term TEXT PRIMARY KEY, documents INTEGER)")
    connection.execute(
        "INSERT INTO frequent SELECT term, doc FROM temp.terms WHERE doc >= ?", (_FREQUENT,)
    )
    connection.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT)")
    facts = {**state, "documents": str(count)}
    connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    connection.execute("COMMIT")
    on_progress(count, size, size)


def _connect(file: Path) -> sqlite3.Connection:
    """A connection with a scratch table that tells how the tokenizer spells a word."""
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode=ro&immutable=1",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(
        f"CREATE VIRTUAL TABLE temp.words USING fts5 (word, tokenize='{_TOKENIZER}')"
    )
    connection.execute("CREATE VIRTUAL TABLE temp.stems USING fts5vocab (temp, words, instance)")
    return connection


def _state(corpus: Path) -> dict[str, str]:
    """What tells whether an index was made of the corpus as it is now."""
    stat = corpus.stat()
    return {
        "format": f"{_FORMAT} {_TOKENIZER}",
        "corpus_bytes": str(stat.st_size),
        "corpus_time": str(stat.st_mtime_ns),
    }


def _facts(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM facts").fetchall())


def _is_current(corpus: Path, file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with contextlib.closing(_connect(file)) as connection:
            return _state(corpus).items() <= _facts(connection).items()
    except sqlite3.DatabaseError:  # not an index, or a damaged one
        return False
