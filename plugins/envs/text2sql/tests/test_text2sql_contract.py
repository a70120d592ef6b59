"""The text2sql env keeps the contract of envs."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_text2sql.config import Text2SqlConfig
from skyrl_text2sql.env import Text2SqlEnv

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: the contract of text2sql was not checked",
)


class TestText2Sql(EnvContract):
    prompt = ({"role": "user", "content": "How many are there?"},)
    actions = (
        "<sql>SELECT count(*) FROM t</sql>",
        "<think>three</think><solution>SELECT 3</solution>",
        "<solution>",
        "",
    )

    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> None:
        folder = tmp_path / "spider" / "database" / "shop"
        folder.mkdir(parents=True)
        with sqlite3.connect(folder / "shop.sqlite") as connection:
            connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3);")
        connection.close()
        self.db_path = tmp_path

    def make(self, cap: int | None = None) -> Env:
        extras = {
            "db_id": "shop",
            "data": "spider",
            "reward_spec": {"ground_truth": "SELECT count(*) FROM t"},
        }
        return Text2SqlEnv(extras, Text2SqlConfig(db_path=str(self.db_path)), cap)
