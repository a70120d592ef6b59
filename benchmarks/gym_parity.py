"""Are skyrl-gym's envs and those of this project of one opinion? A thousand answers for each.

    python benchmarks/gym_parity.py                  all envs: gym_parity.json, and the table in
                                                     docs/how-to/skyrl-gym.md
    python benchmarks/gym_parity.py --count 50 lcb   some, printed only

skyrl-gym's classes run through the adapter, those that execute code in the sandbox. Ends with
exit code 1 if rewards differ in a way that `EXPLAINED` does not explain, or if less than a third
of an env's answers are right.
"""

import argparse
import asyncio
import copy
import inspect
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gym_answers import DATABASE, ENVS, Case, cases
from text import table, to_json

from skyrl_kernel.config import merge_layers, resolve_config
from skyrl_kernel.plugins import PluginManager, discover

HERE = Path(__file__).parent
RESULTS = HERE / "gym_parity.json"
PAGE = HERE.parent / "docs" / "how-to" / "skyrl-gym.md"
BEGIN, END = "<!-- benchmarks/gym_parity.py writes from here -->", "<!-- to here -->"
COUNT = 1000
PORT = 8000
"""Where skyrl-gym's searchcode searches, whatever is set."""
PROMPT = [{"role": "user", "content": "?"}]

Outcome = tuple[tuple[float, bool], ...] | str
"""(reward, done) of each turn, or why there is none."""
Make = Callable[[str, Mapping[str, Any]], Any]
"""(env's name, row) → a fresh env."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A difference that is meant."""

    env: str
    title: str
    text: str
    applies: Callable[[Case, Outcome, Outcome], bool]
    """(the episode, what happened here, what happened there)."""


EXPLAINED: Sequence[Explained] = (
    Explained(
        env="gsm8k",
        title="the reference is a number, not text",
        text="compared as text here; there no answer can be right",
        applies=lambda case, ours, theirs: case.kind == "reference is a number",
    ),
    Explained(
        env="search",
        title="the row names no right answer",
        text="the row is refused here, as a mistake in the data; there every answer earns 0",
        applies=lambda case, ours, theirs: case.kind == "no right answer" and isinstance(ours, str),
    ),
    Explained(
        env="search",
        title="an earlier reply opened `<answer>` and did not close it",
        text="the last reply is judged here; there the whole conversation, in which the answer then "
        "begins in the earlier reply (and in which a document that has the tags would be an answer)",
        applies=lambda case, ours, theirs: any(
            "<answer>" in reply for reply in case.replies[: len(theirs) - 1]
        ),
    ),
)


@dataclass(kw_only=True)
class Comparison:
    """Of one env."""

    env: str
    episodes: int = 0
    right: int = 0
    """Whose last reward was skyrl-gym's highest."""
    equal: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    """Title of an explanation → episodes."""
    unexplained: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"ours": 0.0, "theirs": 0.0})

    @property
    def is_fine(self) -> bool:
        """What is promised holds."""
        return not self.unexplained and 3 * self.right >= self.episodes


# --- playing -------------------------------------------------------------------------------------


def maker(*words: str) -> Make:
    """Makes envs of this project and of skyrl-gym, as a run with these ``key=value`` words does."""
    catalog = discover()
    manager = PluginManager(catalog)
    names = ["skyrl-gym", *(name for name in ENVS if catalog.named(f"env/{name}"))]
    manager.load([catalog.find(f"env/{name}") for name in names])
    settings = resolve_config(merge_layers([], (), words), manager.sections(), {})

    def make(name: str, row: Mapping[str, Any]) -> Any:
        return manager.make(
            "make_env",
            name,
            name=name,
            settings=settings,
            extras=copy.deepcopy(dict(row)),
            max_turns=None,
        )

    return make


def play(make: Make, name: str, case: Case) -> Outcome:
    """One episode."""
    turns: list[tuple[float, bool]] = []
    try:
        env = make(name, case.row)
        _call(env.init, PROMPT)
        try:
            for reply in case.replies:
                step = _call(env.step, reply)
                turns.append((float(step["reward"]), bool(step["done"])))
                if turns[-1][1]:
                    break
        finally:
            _call(env.close)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return tuple(turns)


def _call(method: Any, *args: Any) -> Any:
    result = method(*args)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def compare(env: str, make: Make, episodes: Iterator[Case]) -> Comparison:
    """Have both judge the same episodes."""
    found = Comparison(env=env)
    for name in (env, f"skyrl-gym:{env}"):
        play(make, name, next(cases(env, 1, seed=-1)))  # imports, and a worker for those to come
    for case in episodes:
        outcomes: dict[str, Outcome] = {}
        for side, name in (("ours", env), ("theirs", f"skyrl-gym:{env}")):
            began = time.perf_counter()
            outcomes[side] = play(make, name, case)
            found.seconds[side] += time.perf_counter() - began
        ours, theirs = outcomes["ours"], outcomes["theirs"]
        found.episodes += 1
        found.right += not isinstance(theirs, str) and theirs[-1][0] == 1.0
        if isinstance(ours, str) and isinstance(theirs, str):
            found.equal += 1  # both refuse
        elif not isinstance(ours, str) and not isinstance(theirs, str) and _alike(ours, theirs):
            found.equal += 1
        else:
            reasons = [one for one in EXPLAINED if one.env == env]
            reason = next((one for one in reasons if one.applies(case, ours, theirs)), None)
            if reason is not None:
                found.explained[reason.title] += 1
            else:
                found.unexplained.append(f"{case.kind}: here {ours}, there {theirs}: {case}")
    return found


def _alike(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]) -> bool:
    return len(ours) == len(theirs) and all(
        abs(one[0] - other[0]) < 1e-9 and one[1] == other[1]
        for one, other in zip(ours, theirs, strict=True)
    )


# --- what the envs need ----------------------------------------------------------------------------


@contextmanager
def surroundings(port: int = PORT) -> Iterator[Make]:
    """A retriever and databases for both sides; ``port`` 0 leaves out what needs `PORT`."""
    with tempfile.TemporaryDirectory() as name, _Retriever(port) as retriever:
        folder = Path(name)
        folder.chmod(0o755)  # programs in the sandbox are another user
        file = folder / "spider" / "database" / "people" / "people.sqlite"
        file.parent.mkdir(parents=True)
        with sqlite3.connect(file) as connection:
            connection.executescript(DATABASE)
        connection.close()
        url = f"http://127.0.0.1:{retriever.server_port}/retrieve"
        installed = {entry.name for entry in discover() if entry.kind == "env"}
        words = [
            f"environment.{env}.{key}={value}"
            for env, key, value in (
                ("search", "search_url", url),
                ("searchcode", "search_url", url),
                ("text2sql", "db_path", folder),
            )
            if env in installed
        ]
        yield maker(
            *words,
            f"environment.skyrl_gym.env_config.search.search_url={url}",
            f"environment.skyrl_gym.env_config.text2sql.db_path={folder}",
            f"environment.skyrl_gym.ports=[{retriever.server_port}]",
        )
        _close_connections()


def _close_connections() -> None:
    """skyrl-gym keeps its connections until Python ends, which then complains of them."""
    from skyrl_gym.tools import SearchToolGroup  # type: ignore[import-untyped]

    for session in SearchToolGroup._session_pool.values():
        session.close()


class _Retriever(ThreadingHTTPServer):
    """Finds something for every query, in the contract of Search-R1."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        queries = [asked["query"]] if "query" in asked else asked["queries"]
        found = [
            [
                {"document": {"contents": f'"{n}"\n{query} is number {n}.'}, "score": 1 / n}
                for n in range(1, asked["topk"] + 1)
            ]
            for query in queries
        ]
        body = json.dumps({"result": found}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


# --- the table -------------------------------------------------------------------------------------


def summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What is written into gym_parity.json."""
    return {
        one.env: {
            "episodes": one.episodes,
            "right": one.right,
            "equal": one.equal,
            "explained": dict(sorted(one.explained.items())),
            "ours_ms": round(1000 * one.seconds["ours"] / one.episodes, 3),
            "theirs_ms": round(1000 * one.seconds["theirs"] / one.episodes, 3),
        }
        for one in comparisons
    }


def section(results: Mapping[str, Any]) -> str:
    """The part of the page that is written."""
    rows = [
        [
            f"`{env}`",
            f"{one['episodes']}",
            f"{one['right']} ({one['right'] / one['episodes']:.0%})",
            f"{one['equal']}",
            f"{sum(one['explained'].values())}",
            f"{one['ours_ms']:.2f} / {one['theirs_ms']:.2f}",
        ]
        for env, one in results.items()
    ]
    head = ["env", "episodes", "right", "equal rewards", "different, as meant", "ms here / there"]
    texts = {(one.env, one.title): one.text for one in EXPLAINED}
    differences = [
        [f"`{env}`", title, f"{count}", texts[env, title]]
        for env, one in results.items()
        for title, count in one["explained"].items()
    ]
    return (
        f"{table(head, rows)}\n\nThe differences:\n\n"
        f"{table(['env', 'where', 'episodes', 'why'], differences)}"
    )


def write_page(results: Mapping[str, Any]) -> None:
    """Put the table into the page."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}")


def main() -> int:
    """Compare, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("envs", nargs="*", metavar="ENV", help=f"of {', '.join(ENVS)}")
    parser.add_argument("--count", type=int, default=COUNT, help="answers for each")
    asked = parser.parse_args()
    if set(asked.envs) - set(ENVS):
        parser.error(
            f"no env {', '.join(set(asked.envs) - set(ENVS))}; there are {', '.join(ENVS)}"
        )
    comparisons = []
    with surroundings() as make:
        for env in asked.envs or ENVS:
            one = compare(env, make, cases(env, asked.count))
            comparisons.append(one)
            print(f"{env}: {summary([one])[env]}", flush=True)
            for line in one.unexplained[:20]:
                print(f"  NOT EXPLAINED {line}", flush=True)
    if not asked.envs and asked.count == COUNT and all(one.is_fine for one in comparisons):
        results = summary(comparisons)
        RESULTS.write_text(to_json(results))
        write_page(results)
    return 0 if all(one.is_fine for one in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
