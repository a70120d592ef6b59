"""Calls, results and rewards, with a real search engine and a real sandbox."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.errors import FailureKind, TrajectoryError, UsageError
from skyrl_sandbox import Limits, Sandbox
from skyrl_searchcode.config import SearchcodeConfig
from skyrl_searchcode.env import SearchcodeEnv, extract_answer
from skyrl_searchcode.plugin import check_env, make_env
from skyrl_searchcode.tools import Call, make_sandbox, run_python, search

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: programs of searchcode were not run",
)
ROW = {"reward_spec": {"ground_truth": "1200"}}


class Library(BaseHTTPRequestHandler):
    """Finds the query itself; fails for 'fail', finds nothing for 'nothing'."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query = request["query"]
        hits = [] if query == "nothing" else [
            {"document": {"contents": f" {query} no. {n} "}, "score": 1.0} for n in range(request["topk"])
        ]  # fmt: skip
        body = json.dumps({"result": [hits]}).encode()
        self.send_response(400 if query == "fail" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Library) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/retrieve"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return make_sandbox(SearchcodeConfig(python_timeout_s=1, memory_mb=256), 60.0)


def settings(url: str, **fields: object) -> dict:
    config = SearchcodeConfig(search_url=url, topk=2, **fields)
    return {SearchcodeConfig: config, EnvironmentConfig: EnvironmentConfig()}


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("<tool><search>who</search></tool>", ("search", "who")),
        ("I think <tool>\n<python>\nprint(1)\n</python>\n</tool> so", ("python", "print(1)")),
        ("<tool><a>1</a><b>2</b></tool>", ("a", "1")),
        ("<tool><a>1</a></tool><tool><b>2</b></tool>", ("a", "1")),
        ("<tool><a><b>1</b></a></tool>", ("a", "<b>1</b>")),
        ("<tool><a>1</b></tool>", None),
        ("<tool>1</tool>", None),
        ("<tool><a>1</a>", None),
        ("<search>who</search>", None),
        ("", None),
    ],
)
def test_the_first_tool_with_a_name_is_called(action: str, call: tuple[str, str] | None) -> None:
    if call is None:
        with pytest.raises(ValueError, match=r"No <tool>|No tool is named"):
            Call.parse(action)
    else:
        assert Call.parse(action) == Call(tool=call[0], input=call[1])


@pytest.mark.parametrize(
    ("text", "answer"),
    [("#### 42", "42"), ("#### 1,200", "1200"), ("#### -3.5", "-3.5"), ("#### 1 #### 2", "1"),
     ("####42", None), ("#### $4", None), ("#### x #### 7", "7"), ("42", None), ("#### 42.", "42.")],
)  # fmt: skip
def test_the_first_marked_number_is_the_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@needs_bwrap
def test_an_episode_searches_calculates_and_answers(url: str) -> None:
    env = make_env("searchcode", settings(url), {**ROW, "max_turns": 5}, None)
    assert env is not None
    found = env.step("<tool><search>größe</search></tool>")
    assert found == {
        "observations": [
            {"role": "user", "content": '{"result": "Doc 1: größe no. 0\\nDoc 2: größe no. 1\\n"}'}
        ],
        "reward": 0.0, "done": False, "metadata": {"tool": "search"},
    }  # fmt: skip
    computed = env.step("<tool><python>print(30 * 40)</python></tool>")
    assert computed["observations"] == [{"role": "user", "content": "1200"}]
    lost = env.step("<tool><fly>away</fly></tool>")
    assert lost["observations"][0]["content"] == (
        "There is no tool 'fly'; there are: search, python."
    )
    last = env.step("<solution>#### 1,200</solution>")
    assert (last["reward"], last["done"], last["observations"]) == (1.0, True, [])
    assert env.get_metrics() == {"exact_match": 1.0, "steps": 4.0, "tool_calls": 2.0}


def test_the_last_turn_judges_without_running_a_tool() -> None:
    calls = []
    env = SearchcodeEnv(ROW, {"python": calls.append}, max_turns=1)
    step = env.step("<tool><python>print(1)</python></tool> #### 1200")
    assert (step["done"], step["reward"], calls) == (True, 1.0, [])


def test_the_first_number_of_the_whole_conversation_counts() -> None:
    tools = {"python": lambda program: "#### 7"}
    env = SearchcodeEnv(ROW, tools, max_turns=3)
    env.step("<tool><python>x</python></tool>")
    assert env.step("<solution>#### 1200</solution>")["reward"] == 0.0
    env = SearchcodeEnv(ROW, {"python": lambda program: "#### 1200"}, max_turns=3)
    env.step("<tool><python>x</python></tool>")
    assert env.step("<solution>as it says</solution>")["reward"] == 1.0


@needs_bwrap
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('hello world')", "hello world"),
        ("print(1 + 1)", "2"),
        ("print('  x  \\n')", "x"),
        ("", "The program wrote nothing."),
        ("import numpy as np\nprint(np.arange(3).sum())", "3"),
        ("import sys; print(1); print('oh', file=sys.stderr)", "Error executing Python code: oh"),
        ("while True: pass", "Error executing Python code: Execution timed out after 1 seconds."),
        ("while True: print('x' * 1000)", "Error executing Python code: It wrote more than 1024 KB."),
        ("print('x' * 10000)", "x" * 8192 + "…"),
    ],
)  # fmt: skip
def test_what_a_program_wrote_is_shown(sandbox: Sandbox, program: str, said: str) -> None:
    assert run_python(sandbox, program) == said


@needs_bwrap
def test_an_error_is_shown_with_its_end(sandbox: Sandbox) -> None:
    said = run_python(sandbox, "raise ValueError('bad input')")
    assert said.startswith("Error executing Python code: Traceback")
    assert said.endswith("ValueError: bad input")
    long = run_python(sandbox, "raise ValueError('x' * 20000 + 'end')")
    assert long.endswith("end")
    assert len(long) < 8300


@needs_bwrap
def test_programs_are_held_by_the_sandbox(sandbox: Sandbox) -> None:
    assert "No such file" in run_python(sandbox, "print(open('/etc/passwd').read())")
    assert "unreachable" in run_python(
        sandbox, "import socket; socket.create_connection(('1.1.1.1', 53), 1)"
    )
    assert "MemoryError" in run_python(sandbox, "x = bytearray(10**9)")


def test_nothing_found_is_said(url: str) -> None:
    from skyrl_search.client import Retriever

    retriever = Retriever(url, topk=2)
    nothing = '{"result": "No search results found."}'
    assert search(retriever, "nothing") == search(retriever, "") == nothing
    retriever.close()


@needs_bwrap
def test_a_search_engine_that_fails_loses_the_trajectory(url: str) -> None:
    env = make_env("searchcode", settings(url), {**ROW, "max_turns": 3}, None)
    assert env is not None
    with pytest.raises(
        TrajectoryError, match=r"refused a search .* Is environment\.searchcode\.search_url right"
    ) as caught:
        env.step("<tool><search>fail</search></tool>")
    assert caught.value.kind is FailureKind.INFRASTRUCTURE
    assert caught.value.plugin == "searchcode"


def test_a_sandbox_that_fails_loses_the_trajectory() -> None:
    broken = Sandbox(bwrap="/usr/bin/false", limits=Limits(cpu_s=1))
    with pytest.raises(TrajectoryError, match="the sandbox failed") as caught:
        run_python(broken, "print(1)")
    assert caught.value.kind is FailureKind.INFRASTRUCTURE


@needs_bwrap
def test_turns_come_from_the_row_then_the_section_then_the_cap(url: str) -> None:
    def turns(row: dict, cap: int | None, **fields: object) -> int:
        env = make_env("searchcode", settings(url, **fields), {**ROW, **row}, cap)
        assert env is not None
        return env.max_turns

    assert turns({}, None) == 2
    assert turns({}, 6) == 6
    assert turns({}, None, max_turns=4) == 4
    assert turns({"max_turns": 3}, None, max_turns=4) == 3
    assert turns({"max_turns": 9}, 5) == 5


@needs_bwrap
def test_the_plugin_refuses_at_the_start_what_it_cannot_have(url: str) -> None:
    check_env("searchcode", settings(url))
    check_env("search", settings(url, packages=["nothing_at_all"]))  # another's
    with pytest.raises(UsageError, match="no package 'nothing_at_all' for the sandbox"):
        check_env("searchcode", settings(url, packages=["nothing_at_all"]))
    assert make_env("search", settings(url), ROW, None) is None


def test_a_row_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="env 'searchcode' needs the column reward_spec"):
        SearchcodeEnv({}, {})
