"""Lets the model try queries on a database, and judges the one that it gives as its solution."""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv, require_ground_truth
from skyrl_kernel.errors import UsageError
from skyrl_sandbox import (
    Limits,
    Sandbox,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerPool,
    WorkerTimeout,
    seat,
)
from skyrl_text2sql.config import Text2SqlConfig
from skyrl_text2sql.inside.text2sql_queries import RIGHT
from skyrl_text2sql.solution import parse_query, parse_solution

COLLECTIONS = {
    "synsql": "SynSQL-2.5M/databases",
    "spider": "spider/database",
    "bird": "bird/train/train_databases",
}
"""The row's column ``data`` → folder below ``db_path``."""

_FACTOR = 2
"""Times its limit that a query which does not end by itself may take on the clock."""
_NO_QUERY = "Your reply has no complete query. Think first, then write one query in its tags."
"""Without tags of its own: they would count as the model's."""


class Text2SqlEnv(TextEnv):
    """An episode: queries and their rows, then a solution.

    The last reply earns 1.0 if its solution has the rows of the reference, 0.0 if it has
    others or is no query, and -1.0 if the conversation does not have the form that
    `parse_solution` asks for.

    Args:
        extras: Columns of the row: ``db_id``, ``data`` (a key of `COLLECTIONS`) and
            ``reward_spec.ground_truth``, the reference query.
        config: Where databases are, and how long queries may take.
        cap: ``generator.max_turns``.
        call_timeout_s: Within which a step must be done.

    Raises:
        ValueError: A column is missing or names no collection.
        FileNotFoundError: There is no such database.
    """

    def __init__(
        self,
        extras: Mapping[str, Any],
        config: Text2SqlConfig,
        cap: int | None = None,
        call_timeout_s: float = 60.0,
    ) -> None:
        super().__init__(extras, max_turns=config.max_turns, cap=cap)
        self._reference = require_ground_truth(extras, "text2sql")
        self._file = database_file(extras, config.db_path)
        self._config = config
        self._call_timeout_s = call_timeout_s
        self._deadline = 0.0
        self._conversation: list[str] = []
        self._reward = 0.0

    def step(self, action: str) -> EnvStep:
        """Judge the solution if there is one or no turn is left; else run the query."""
        self.turns += 1
        self._conversation.append(action)
        has_solution = "<solution>" in action and "</solution>" in action
        if has_solution or self.turns >= self.max_turns:
            self._reward, verdict = self._judge()
            return EnvStep(
                observations=[], reward=self._reward, done=True, metadata={"verdict": verdict}
            )
        sql = parse_query(action)
        observation = (
            f"\n\n<observation>{_NO_QUERY if sql is None else self._try(sql)}\n<reminder>You have "
            f"{self.max_turns - self.turns} turns left to complete the task.</reminder>"
            "</observation>\n\n"
        )
        self._conversation.append(observation)
        return EnvStep(
            observations=[{"role": "user", "content": observation}],
            reward=0.0,
            done=False,
            metadata={"query": sql},
        )

    def get_metrics(self) -> Mapping[str, float]:
        """``exact_match``, ``valid_format`` (1 or 0 each) and ``steps``."""
        return {
            "exact_match": float(self._reward == 1.0),
            "valid_format": float(self._reward >= 0.0),
            "steps": float(self.turns),
        }

    def _try(self, sql: str) -> str:
        try:
            with self._worker() as worker:
                return self._ask(worker, self._config.query_timeout_s, sql=sql)
        except WorkerTimeout:
            return f"SQL Timeout:\n{sql}"
        except WorkerDied as error:
            return f"Error executing SQL: {error}"

    def _judge(self) -> tuple[float, str]:
        solution = parse_solution("".join(self._conversation))
        if solution is None:
            return -1.0, "wrong format"
        timeout_s = self._config.solution_timeout_s
        with self._worker() as worker:
            try:
                self._ask(worker, timeout_s, reference=self._reference)
            except (WorkerTimeout, WorkerDied) as error:
                raise ValueError(
                    f"the reference query of this row does not end: {error}"
                ) from error
            try:
                verdict = self._ask(worker, timeout_s, solution=solution, reference=self._reference)
            except WorkerTimeout:
                return 0.0, "timeout"
            except WorkerDied as error:
                return 0.0, f"error: {error}"
        return float(verdict == RIGHT), verdict

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        """One for the queries of this call, which has a deadline."""
        self._deadline = time.monotonic() + self._call_timeout_s
        with (
            seat(self._call_timeout_s / 3),
            queries(self._config.db_path).lent() as worker,
        ):
            yield worker

    def _ask(self, worker: Worker, timeout_s: float, **queries: str) -> str:
        """What `answer` says; it ends queries by itself, except for those that let nobody in."""
        left_s = self._deadline - time.monotonic()
        request = {"file": str(self._file), "timeout_s": timeout_s, **queries}
        try:
            answer = worker.call(request, min(_FACTOR * timeout_s, left_s))
        except WorkerError as error:
            raise ValueError(str(error).partition(": ")[2]) from error
        return str(answer)


@functools.cache
def queries(db_path: str) -> WorkerPool:
    """The workers that run queries on the databases below a folder.

    Raises:
        UsageError: The folder is missing or holds no collection, or no sandbox can be
            had here.
    """
    folders = [Path(db_path) / folder for folder in COLLECTIONS.values()]
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        raise UsageError(
            f"environment.text2sql.db_path={db_path} holds no collection of databases; it must be a "
            f"folder with one of: {', '.join(COLLECTIONS.values())}"
        )
    limits = Limits(
        cpu_s=None,  # a worker lives as long as the run; each call has its deadline
        memory_mb=1024,
        processes=4,
        output_kb=1024,
        files_mb=256,  # where SQLite sorts what is too much for its cache
    )
    inside = Path(str(resources.files("skyrl_text2sql"))) / "inside"
    sandbox = Sandbox(readable=found, python_path=[inside], limits=limits)
    return WorkerPool(sandbox, "text2sql_queries:answer")


def database_file(extras: Mapping[str, Any], db_path: str) -> Path:
    """The database that a row asks about.

    Raises:
        ValueError: A column is missing or names no collection, or the database's name
            is no name.
        FileNotFoundError: There is no such database.
    """
    missing = [name for name in ("db_id", "data") if not extras.get(name)]
    if missing:
        raise ValueError(
            f"env 'text2sql' needs the columns {', '.join(missing)}; "
            f"this row has the columns: {', '.join(sorted(extras)) or 'none'}"
        )
    collection, name = extras["data"], str(extras["db_id"])
    if collection not in COLLECTIONS:
        raise ValueError(
            f"data='{collection}' is no collection of databases; there are: "
            f"{', '.join(COLLECTIONS)}"
        )
    if Path(name).name != name:
        raise ValueError(f"db_id='{name}' names no folder of '{COLLECTIONS[collection]}'")
    file = Path(db_path) / COLLECTIONS[collection] / name / f"{name}.sqlite"
    if not file.is_file():
        raise FileNotFoundError(
            f"no database '{file}'; environment.text2sql.db_path={db_path} must be the folder that "
            f"holds {COLLECTIONS[collection]}/"
        )
    return file
