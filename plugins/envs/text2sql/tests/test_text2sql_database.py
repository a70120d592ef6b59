"""Queries can read their database, and nothing else, and not for ever."""

import hashlib
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_text2sql.inside.text2sql_queries import (
    MAX_CHARS,
    QueryTimeoutError,
    fetch_distinct,
    has_same_rows,
    run_query,
    show_rows,
)

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "shop #1?.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL);"
        "INSERT INTO item VALUES (1, 'pen', 1.5), (2, 'ink', NULL), (3, 'pen', 1.5);"
        "CREATE INDEX by_name ON item(name);"
        "CREATE VIEW cheap AS SELECT * FROM item WHERE price < 2;"
    )
    connection.close()
    return path


@pytest.fixture(autouse=True)
def _unchanged(file: Path):
    before = hashlib.sha256(file.read_bytes()).hexdigest(), sorted(file.parent.iterdir())
    yield
    assert (hashlib.sha256(file.read_bytes()).hexdigest(), sorted(file.parent.iterdir())) == before


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT name, price FROM item", {("pen", 1.5), ("ink", None)}),
        ("SELECT count(*) FROM cheap", {(2,)}),
        ("WITH p AS (SELECT max(price) m FROM item) SELECT m FROM p", {(1.5,)}),
        ("SELECT id, row_number() OVER (ORDER BY id DESC) FROM item", {(1, 3), (2, 2), (3, 1)}),
        ("SELECT json_extract('{\"a\": 2}', '$.a')", {(2,)}),
        ("SELECT name FROM sqlite_master WHERE type = 'view'", {("cheap",)}),
        ("PRAGMA table_info(item)", {(0, "id", "INTEGER", 0, None, 1),
                                     (1, "name", "TEXT", 0, None, 0),
                                     (2, "price", "REAL", 0, None, 0)}),
        ("VALUES (1), (1)", {(1,)}),
        ("-- nothing", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_reading_is_allowed(file: Path, sql: str, rows: set) -> None:
    assert fetch_distinct(file, sql, 5.0) == rows


@pytest.mark.parametrize(
    "sql",
    [
        *("INSERT INTO item VALUES (9, 'x', 1)", "DELETE FROM item", "UPDATE item SET price = 0"),
        *("DROP TABLE item", "CREATE TABLE x(a)", "CREATE TEMP TABLE x(a)", "VACUUM", "REINDEX"),
        *("CREATE TEMP VIEW x AS SELECT 1", "ALTER TABLE item ADD x", "ANALYZE", "BEGIN"),
        "CREATE VIRTUAL TABLE x USING fts5(a)",
        "CREATE TEMP TRIGGER x AFTER INSERT ON item BEGIN SELECT 1; END",
        *("ATTACH '/etc/passwd' AS x", "ATTACH ':memory:' AS x", "DETACH main"),
        "VACUUM INTO '/tmp/skyrl-copy-of-the-database'",
        *("PRAGMA writable_schema = 1", "PRAGMA journal_mode = DELETE", "PRAGMA query_only = 0"),
        *("PRAGMA temp_store_directory = '/etc'", "PRAGMA hard_heap_limit = 1", "PRAGMA database_list"),
        *("SELECT load_extension('/tmp/x.so')", "SELECT fts3_tokenizer('simple')"),
        *("SELECT readfile('/etc/passwd')", "SELECT writefile('/tmp/x', 'y')", "SELECT edit('x')"),
        *("SELECT 1; DROP TABLE item", "SELECT nothing", "SELEC 1", "SELECT '\ud800'", "SELECT 1\0"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(file: Path, sql: str) -> None:
    with pytest.raises((sqlite3.Error, sqlite3.Warning, ValueError)):
        fetch_distinct(file, sql, 5.0)
    assert not Path("/tmp/skyrl-copy-of-the-database").exists()


@pytest.mark.parametrize(
    "sql",
    [
        ENDLESS,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT DISTINCT i FROM n ORDER BY -i",
        "SELECT count(*) FROM item a, item b, item c, item d, item e, item f, item g, item h, item i,"
        " item j, item k, item l, item m, item n, item o, item p, item q, item r, item s, item t",
    ],
)  # fmt: skip
def test_a_query_without_end_ends_in_time(file: Path, sql: str) -> None:
    began = time.thread_time()
    with pytest.raises(QueryTimeoutError, match=r"it took longer than 0\.2 s"):
        has_same_rows(file, sql, frozenset((i,) for i in range(10**6)), 0.2)
    assert time.thread_time() - began < 1.5


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT zeroblob(1000000000)",
        "SELECT hex(zeroblob(16000000))",
        "SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000)))",
        f"SELECT 'a' LIKE '{'%a' * 1000}'",
        "SELECT " + " + ".join(["1"] * 60_000),
        "SELECT 1" + " " * 200_000,
    ],
)
def test_a_step_that_no_clock_could_end_is_refused(file: Path, sql: str) -> None:
    began = time.thread_time()
    with pytest.raises(sqlite3.Error):
        fetch_distinct(file, sql, 5.0)
    assert time.thread_time() - began < 2


def test_what_takes_a_while_is_not_taken_for_endless(file: Path) -> None:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT max(i) FROM n"
    assert fetch_distinct(file, sql, 5.0) == {(300000,)}


def test_an_error_of_the_reader_is_not_taken_for_a_timeout(file: Path) -> None:
    with pytest.raises(KeyError), run_query(file, "SELECT 1", 5.0):
        raise KeyError("mine")


def test_nothing_is_made_beside_a_database_with_a_log(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA journal_mode = WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);"
    )
    connection.close()  # which writes the log back and removes it
    read = []
    with run_query(path, "SELECT a FROM t", 5.0) as cursor:
        read = list(cursor)
        assert [file.name for file in tmp_path.iterdir()] == ["shop.sqlite"]
    assert read == [(1,)]


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_text("no database at all, but long enough to be read as one" * 30)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        fetch_distinct(tmp_path / "x.sqlite", "SELECT * FROM sqlite_master", 5.0)


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        fetch_distinct(tmp_path / "x.sqlite", "SELECT 1", 5.0)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_compared_as_sets(file: Path) -> None:
    expected = frozenset({("pen",), ("ink",)})
    for sql, is_same in [
        ("SELECT name FROM item", True),  # 'pen' twice
        ("SELECT DISTINCT name FROM item ORDER BY name DESC", True),
        ("SELECT name FROM item WHERE id = 1", False),  # one is missing
        ("SELECT name FROM item UNION SELECT 'cap'", False),  # one too many
        ("SELECT name, 1 FROM item", False),
        ("SELECT upper(name) FROM item", False),
    ]:
        assert has_same_rows(file, sql, expected, 5.0) is is_same, sql
    assert has_same_rows(file, "SELECT 1", frozenset({(1.0,)}), 5.0)  # as Python compares
    assert not has_same_rows(file, "SELECT 1", frozenset({("1",)}), 5.0)
    assert has_same_rows(file, "SELECT 1 WHERE 0", frozenset(), 5.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab")), max_size=8), st.randoms())
def test_order_and_repetition_change_nothing(rows: list, rng) -> None:
    shuffled = [*rows, *rows[:2]]
    rng.shuffle(shuffled)
    values = ", ".join(f"({i}, '{c}')" for i, c in shuffled)
    sql = f"SELECT * FROM (VALUES {values})" if values else "SELECT 1, 2 WHERE 0"
    assert has_same_rows(_EMPTY, sql, frozenset(rows), 5.0)
    assert has_same_rows(_EMPTY, sql, frozenset(rows) | {(9, "z")}, 5.0) is False


_EMPTY = Path(__file__).parent / "empty.sqlite"


@pytest.fixture(scope="module", autouse=True)
def _empty(tmp_path_factory: pytest.TempPathFactory):
    global _EMPTY
    _EMPTY = tmp_path_factory.mktemp("sql") / "empty.sqlite"
    connection = sqlite3.connect(_EMPTY)
    connection.execute("CREATE TABLE t(a)")
    connection.close()


def shown(sql: str) -> str:
    with run_query(_EMPTY, sql, 5.0) as cursor:
        return show_rows(cursor)


def test_rows_are_shown_with_their_names_in_their_order() -> None:
    assert shown("VALUES (2, 'two'), (10, NULL), (2, 'two')").splitlines() == [
        "column1  column2",
        "      2      two",
        "     10     NULL",
    ]


def test_no_rows_are_said_to_be_none() -> None:
    assert shown("SELECT a FROM t") == "The query has no rows."


def test_a_long_table_is_cut_to_fifty_rows() -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {})"
    # Two columns of 4 and 20 characters, two spaces and a line break: 27 a line, 9000 / 27 = 333.
    for rows, is_cut in [(300, False), (400, True), (100_000, True)]:
        text = shown(f"{numbers.format(rows)} SELECT i, '{'x' * 20}' FROM n")
        assert (
            text.startswith("Truncated to 50 lines since returned response too long:\n") is is_cut
        )
        assert len(text.splitlines()) == (52 if is_cut else 301)


def test_even_one_long_value_is_cut() -> None:
    text = shown("SELECT hex(zeroblob(1000000))")
    assert len(text) < MAX_CHARS + 100
    assert text.endswith("…")
