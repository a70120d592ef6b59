"""Episodes on real databases, through the sandbox."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.errors import UsageError
from skyrl_text2sql.config import Text2SqlConfig
from skyrl_text2sql.env import COLLECTIONS, Text2SqlEnv
from skyrl_text2sql.plugin import check_env, make_env
from skyrl_text2sql.solution import parse_query, parse_solution

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: what text2sql's queries do was not checked",
)

THINK = "<think>hm</think>"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Text2SqlConfig:
    root = tmp_path_factory.mktemp("sql_data")
    for collection in COLLECTIONS.values():
        folder = root / collection / "shop"
        folder.mkdir(parents=True)
        connection = sqlite3.connect(folder / "shop.sqlite")
        connection.executescript(
            "CREATE TABLE item(name TEXT, price REAL);"
            "INSERT INTO item VALUES ('pen', 1.5), ('ink', 4.0), ('cap', 1.5);"
        )
        connection.close()
    return Text2SqlConfig(db_path=str(root), query_timeout_s=0.5, solution_timeout_s=0.5)


def make(config: Text2SqlConfig, gold: str = "SELECT name FROM item", **extras) -> Text2SqlEnv:
    row = {"db_id": "shop", "data": "spider", "reward_spec": {"ground_truth": gold}, **extras}
    return Text2SqlEnv(row, config)


def solve(config: Text2SqlConfig, sql: str, gold: str = "SELECT name FROM item") -> float:
    return make(config, gold).step(f"{THINK}<solution>{sql}</solution>")["reward"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("<sql>SELECT 1</sql>", "SELECT 1"),
        ("<sql>\n SELECT 1\n</sql>", "\n SELECT 1\n"),
        ("<sql>a</sql><sql>b</sql>", "a"),
        ("<sql>SELECT 1", None),
        ("SELECT 1", None),
        ("<SQL>SELECT 1</SQL>", None),
        ("<sql></sql>", ""),
    ],
)
def test_the_query_is_the_first_complete_one(text: str, query: str | None) -> None:
    assert parse_query(text) == query


@pytest.mark.parametrize(
    ("conversation", "solution"),
    [
        (f"{THINK}<solution>SELECT 1</solution>", "SELECT 1"),
        (f"{THINK}<solution>\n SELECT 1 \n</solution>", "SELECT 1"),
        (f"{THINK}<solution></solution>", ""),
        (f"<solution>x</solution>{THINK}", "x"),  # thought of too late is thought of
        (f"{THINK}<sql>q</sql><observation>r</observation>\n{THINK}<solution>x</solution>", "x"),
        (f"{THINK}<observation>r</OBSERVATION> <THINK><solution>x</solution>", "x"),
        (f"</solution>{THINK}<solution>x</solution>", "x"),  # only what follows is counted
        ("<solution>x</solution>", None),  # no thought
        ("<think>hm<solution>x</solution>", None),
        ("<THINK>hm</THINK><solution>x</solution>", None),
        (f"{THINK}<solution>x", None),
        (f"{THINK}x</solution>", None),
        (f"{THINK}", None),
        (f"{THINK}<solution>x</solution><solution>y</solution>", None),
        (f"{THINK}<solution>x</solution></solution>", None),
        (f"{THINK}<solution><solution>x</solution></solution>", None),
        (f"{THINK}<solution><think>x</think></solution>", None),
        (f"{THINK}<solution><SQL>x</solution>", None),
        (f"{THINK}<solution>x</observation></solution>", None),
        (f"{THINK}<solution><sqlite></solution>", "<sqlite>"),  # another tag
        (f"{THINK}<observation>r</observation><solution>x</solution>", None),
        (f"{THINK}<observation>r</observation> so {THINK}<solution>x</solution>", None),
        (f"{THINK}<observation>r</observation>{THINK}<observation>r</observation><sql>q</sql>"
         "<solution>x</solution>", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_solution_counts_only_in_the_right_form(conversation: str, solution: str | None) -> None:
    assert parse_solution(conversation) == solution


@needs_bwrap
@pytest.mark.parametrize(
    ("sql", "reward"),
    [
        ("SELECT name FROM item", 1.0),
        ("SELECT name FROM item ORDER BY price", 1.0),
        ("SELECT name FROM item UNION ALL SELECT 'pen'", 1.0),
        ("SELECT name FROM item;", 1.0),
        ("SELECT name FROM item WHERE price < 2", 0.0),
        ("SELECT name, price FROM item", 0.0),
        ("SELECT nome FROM item", 0.0),
        ("the names", 0.0),
        ("", 0.0),
        ("SELECT name FROM item; SELECT 1", 0.0),
        ("DELETE FROM item", 0.0),
        ("ATTACH '/etc/passwd' AS x", 0.0),
    ],
)
def test_a_solution_is_judged_by_its_rows(config: Text2SqlConfig, sql: str, reward: float) -> None:
    assert solve(config, sql) == reward


@needs_bwrap
def test_writing_does_not_equal_an_empty_reference(config: Text2SqlConfig) -> None:
    empty = "SELECT name FROM item WHERE price > 100"
    assert solve(config, "SELECT 1 WHERE 0", empty) == 1.0
    assert solve(config, "", empty) == 1.0
    assert solve(config, "DELETE FROM item", empty) == 0.0
    assert solve(config, "SELECT name FROM item") == 1.0  # they are still there


@needs_bwrap
def test_a_solution_in_the_wrong_form_costs_one(config: Text2SqlConfig) -> None:
    step = make(config).step("<solution>SELECT name FROM item</solution>")
    assert step == {
        "observations": [], "reward": -1.0, "done": True, "metadata": {"verdict": "wrong format"},
    }  # fmt: skip


@needs_bwrap
def test_an_episode_looks_around_and_solves(config: Text2SqlConfig) -> None:
    env = make(config, "SELECT max(price) FROM item")
    first = env.step(f"{THINK}<sql>SELECT * FROM item</sql>")
    assert first["observations"] == [
        {
            "role": "user",
            "content": "\n\n<observation>name  price\n pen    1.5\n ink    4.0\n cap    1.5\n"
            "<reminder>You have 4 turns left to complete the task.</reminder></observation>\n\n",
        }
    ]
    assert (first["reward"], first["done"]) == (0.0, False)
    wrong = env.step(f"{THINK}<sql>SELECT cost FROM item</sql>")["observations"][0]["content"]
    assert "<observation>Error executing SQL: no such column: cost\n<reminder>You have 3" in wrong
    nothing = env.step(f"{THINK} I forgot")["observations"][0]["content"]
    assert "<observation>Your reply has no complete query." in nothing
    last = env.step(f"{THINK}<solution>SELECT 4.0</solution>")
    assert (last["reward"], last["done"], last["metadata"]) == (1.0, True, {"verdict": "right"})
    assert env.get_metrics() == {"exact_match": 1.0, "valid_format": 1.0, "steps": 4.0}


@needs_bwrap
def test_the_last_turn_ends_the_episode_without_a_solution(config: Text2SqlConfig) -> None:
    env = make(config, max_turns=2)
    assert not env.step(f"{THINK}<sql>SELECT 1</sql>")["done"]
    last = env.step(f"{THINK}<sql>SELECT 1</sql>")
    assert (last["done"], last["reward"]) == (True, -1.0)


@needs_bwrap
@pytest.mark.parametrize("data", list(COLLECTIONS))
def test_every_collection_has_its_folder(config: Text2SqlConfig, data: str) -> None:
    env = make(config, data=data)
    assert env.step(f"{THINK}<solution>SELECT name FROM item</solution>")["reward"] == 1.0


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
ONE_CALL = "SELECT printf('%.*c', 2000000000, 'x') || printf('%.*c', 2000000000, 'x')"
MEMORY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT max(x) OVER (ORDER BY x ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    " FROM (SELECT hex(zeroblob(1000000)) || i AS x FROM n)"
)


WIDE = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
    " SELECT i || hex(zeroblob(8000000)) FROM n"
)
"""Fifty rows are shown however wide they are, and these do not fit into memory."""


@needs_bwrap
def test_rows_that_do_not_fit_into_memory_are_an_error_of_the_query(config: Text2SqlConfig) -> None:
    patient = config.model_copy(update={"query_timeout_s": 10.0, "solution_timeout_s": 10.0})
    tried = make(patient).step(f"{THINK}<sql>{WIDE}</sql>")["observations"][0]["content"]
    assert "Error executing SQL: it takes too much memory" in tried
    with pytest.raises(ValueError, match=r"does not run on 'shop\.sqlite'.*too much memory"):
        solve(patient, "SELECT 1", gold=WIDE.replace("60", "90"))


@needs_bwrap
def test_what_is_kept_of_large_references_takes_no_memory_from_the_next(
    config: Text2SqlConfig,
) -> None:
    patient = config.model_copy(update={"query_timeout_s": 10.0, "solution_timeout_s": 10.0})
    for last in range(20, 24):  # each is a third of what a worker may have
        part = f"SELECT i || hex(zeroblob(8000000)) FROM n WHERE i <= {last}"
        sql = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) {part}"
        assert solve(patient, sql, gold=sql) == 1.0


@needs_bwrap
@pytest.mark.parametrize("sql", [ENDLESS, ONE_CALL, MEMORY])
def test_a_query_that_takes_too_much_is_wrong_and_the_next_one_is_judged(
    config: Text2SqlConfig, sql: str
) -> None:
    began = time.monotonic()
    tried = make(config).step(f"{THINK}<sql>{sql}</sql>")["observations"][0]["content"]
    assert "SQL Timeout" in tried or "Error executing SQL" in tried
    assert solve(config, sql) == 0.0
    assert time.monotonic() - began < 8
    assert solve(config, "SELECT name FROM item") == 1.0


@needs_bwrap
def test_a_reference_that_does_not_run_loses_the_trajectory(config: Text2SqlConfig) -> None:
    with pytest.raises(ValueError, match=r"reference query of this row does not run on 'shop\.sq"):
        solve(config, "SELECT 1", gold="SELECT nome FROM item")


@needs_bwrap
def test_a_reference_that_does_not_end_is_not_the_solutions_fault(config: Text2SqlConfig) -> None:
    for gold in (ENDLESS, ONE_CALL):
        with pytest.raises(ValueError, match="reference query of this row does not"):
            solve(config, "SELECT 1", gold=gold)


@needs_bwrap
def test_a_query_that_lets_nobody_in_is_ended_before_the_call_is(config: Text2SqlConfig) -> None:
    row = {"db_id": "shop", "data": "spider", "reward_spec": {"ground_truth": "SELECT 1"}}
    slow = config.model_copy(update={"solution_timeout_s": 60.0})
    began = time.monotonic()
    step = Text2SqlEnv(row, slow, None, 1.0).step(f"{THINK}<solution>{ONE_CALL}</solution>")
    assert (step["reward"], step["metadata"]) == (0.0, {"verdict": "timeout"})
    assert time.monotonic() - began < 5


@needs_bwrap
def test_a_database_that_cannot_be_read_loses_the_trajectory(config: Text2SqlConfig) -> None:
    folder = Path(config.db_path) / "spider" / "database" / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "broken.sqlite").write_text("this is no database, however long it goes on " * 30)
    env = make(config, db_id="broken")
    with pytest.raises(ValueError, match=r"cannot read the database '.*broken\.sqlite'"):
        env.step(f"{THINK}<sql>SELECT 1</sql>")


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"db_id": None}, "needs the columns db_id; this row has the columns: data, db_id, rew"),
        ({"data": "wikisql"}, "data='wikisql' is no collection of databases; there are: synsql, "),
        ({"db_id": "../../etc"}, r"db_id='\.\./\.\./etc' names no folder of 'spider/database'"),
        ({"reward_spec": {}}, "env 'text2sql' needs the column reward_spec"),
    ],
)
def test_a_row_without_what_is_needed_is_refused(
    config: Text2SqlConfig, extras: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(config, **extras)


def test_a_missing_database_is_named_with_the_setting(config: Text2SqlConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite'; environment\.text2sql\.db_path="):
        make(config, db_id="none")


def test_a_folder_without_collections_is_refused_at_the_start(tmp_path: Path) -> None:
    settings = {Text2SqlConfig: Text2SqlConfig(db_path=str(tmp_path))}
    with pytest.raises(UsageError, match="holds no collection of databases; it must be a folder w"):
        check_env("text2sql", settings)
    check_env("gsm8k", settings)  # another's


@needs_bwrap
def test_the_plugin_makes_its_own_env_and_no_other(config: Text2SqlConfig) -> None:
    settings = {Text2SqlConfig: config, EnvironmentConfig: EnvironmentConfig()}
    row = {"db_id": "shop", "data": "bird", "reward_spec": {"ground_truth": "SELECT 1"}}
    env = make_env("text2sql", settings, row, 3)
    assert env is not None
    assert env.max_turns == 3
    assert make_env("lcb", settings, row, 3) is None
    check_env("text2sql", settings)
