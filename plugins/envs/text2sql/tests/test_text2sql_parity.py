"""Rewards equal those of the skyrl-gym package, on episodes of random queries in random forms."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from skyrl_text2sql.config import Text2SqlConfig
from skyrl_text2sql.env import Text2SqlEnv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("bwrap") is None,
        reason="bubblewrap is not installed: text2sql was not compared with skyrl-gym",
    ),
]

REFERENCES = [
    "SELECT name FROM item",
    "SELECT count(*), max(price) FROM item",
    "SELECT shop, sum(price) FROM item GROUP BY shop",
    "SELECT name FROM item WHERE price > 100",
    "SELECT a.name, b.name FROM item a JOIN item b ON a.shop = b.shop WHERE a.name < b.name",
]
OTHERS = [
    "SELECT name FROM item WHERE price >= 0 ORDER BY name DESC", "SELECT DISTINCT name FROM item",
    "SELECT nome FROM item", "", "nonsense", "SELECT 1; SELECT 2", "SELECT name FROM item;",
    "SELECT count(*), 9.0 FROM item", "SELECT NULL WHERE 0", "SELECT shop, total(price) FROM item GROUP BY 1",
    "-- nothing", "PRAGMA table_info(item)", "SELECT name FROM item LIMIT 2", "SELECT '<b>'",
    "WITH x AS (SELECT name FROM item) SELECT * FROM x",
]  # fmt: skip


def turn(rng: random.Random, sql: str, tag: str) -> str:
    """One reply, mostly in the right form."""
    think = rng.choice(["<think>so</think>"] * 40 + ["", "<think>so", "<THINK>so</THINK>"])
    shapes = [f"<{tag}>{sql}</{tag}>"] * 40 + [
        f"<{tag}>{sql}", f"{sql}</{tag}>", f"<{tag}>{sql}</{tag}></{tag}>", f"<{tag}><{tag}>{sql}</{tag}>",
        f"<{tag}>{sql}<sql></{tag}>", f"</{tag}><{tag}>{sql}</{tag}>", f"<{tag}>\n {sql} \n</{tag}>",
        f"<{tag.upper()}>{sql}</{tag.upper()}>", sql, f"<{tag}>{sql}</{tag}> and more",
    ]  # fmt: skip
    return think + rng.choice(shapes)


def test_rewards_are_those_of_skyrl_gym(tmp_path: Path) -> None:
    skyrl_gym = pytest.importorskip("skyrl_gym", reason="skyrl-gym is not installed: not compared")
    from skyrl_gym.envs.sql.env import Text2SQLEnvConfig

    folder = tmp_path / "bird" / "train" / "train_databases" / "shop"
    folder.mkdir(parents=True)
    connection = sqlite3.connect(folder / "shop.sqlite")
    connection.executescript(
        "CREATE TABLE item(name TEXT, price REAL, shop INTEGER);"
        "INSERT INTO item VALUES ('pen', 1.5, 1), ('ink', 4, 1), ('cap', 9, 2), ('pen', NULL, 2);"
    )
    connection.close()
    rng = random.Random(3)
    rewards = []
    for _ in range(1000):
        gold = rng.choice(REFERENCES)
        row = {"db_id": "shop", "data": "bird", "reward_spec": {"ground_truth": gold}}
        row["max_turns"] = rng.randint(1, 4)
        ours = Text2SqlEnv(row, Text2SqlConfig(db_path=str(tmp_path)))
        theirs = skyrl_gym.make(
            "text2sql", env_config=Text2SQLEnvConfig(db_path=str(tmp_path)), extras=row
        )
        while True:
            is_last = ours.turns == row["max_turns"] - 1
            tag = rng.choice(["solution" if is_last else "sql", "solution"])
            sql = rng.choice([gold, gold, gold, rng.choice(REFERENCES), rng.choice(OTHERS)])
            action = turn(rng, sql, tag)
            mine, other = ours.step(action), theirs.step(action)
            assert (mine["reward"], mine["done"]) == (other["reward"], other["done"]), action
            assert len(mine["observations"]) == len(other["observations"])
            if mine["done"]:
                break
        rewards.append(mine["reward"])
    counts = {value: rewards.count(value) for value in (1.0, 0.0, -1.0)}
    assert counts[1.0] > 333, counts
    assert counts[0.0] > 50, counts
    assert counts[-1.0] > 50, counts
