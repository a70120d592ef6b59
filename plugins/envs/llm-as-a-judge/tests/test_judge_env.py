"""The env and its judge, over a server of chat completions that the test starts."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.env import Env
from skyrl_kernel.errors import FailureBudgetError, FailureKind, TrajectoryError
from skyrl_kernel.json_lines import read_lines
from skyrl_kernel.run.trajectory_file import read_trajectories
from skyrl_kernel.testing.contracts import EnvContract
from skyrl_kernel.testing.scripted import Ask, Script, installed, run_scripted
from skyrl_llm_as_a_judge.client import Judge, shared_judge
from skyrl_llm_as_a_judge.config import JudgeConfig
from skyrl_llm_as_a_judge.env import JudgeEnv
from skyrl_llm_as_a_judge.plugin import make_env

ROW = {"reward_spec": {"method": "rule", "ground_truth": "42"}}
KEY = "not-a-real-key-0123456789"
RIGHT, WRONG = "It agrees.\n### Final Score: 1", "It does not.\n### Final Score: 0"
Answer = Callable[[dict[str, Any]], "tuple[int, str]"]


def said(content: object, status: int = 200) -> tuple[int, str]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    return status, json.dumps({"object": "chat.completion", "choices": [choice]})


def judge_by_dashes(request: dict[str, Any]) -> tuple[int, str]:
    """Right if the reference stands in the answer, as the default prompt lays them out."""
    prompt = request["messages"][0]["content"]
    truth = prompt.partition("Reference answer:\n")[2].partition("\n")[0]
    completion = prompt.partition("dashes:\n----------\n")[2].rpartition("\n----------")[0]
    if "mumble" in completion:
        return said("I cannot tell.")
    return said(RIGHT if truth in completion else WRONG)


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, text = self.server.answer(body)
        if status == 0:
            self.server.released.wait(20)
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def chat(answer: Answer, **headers: str) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answer, server.asked, server.released = answer, [], threading.Event()
    server.headers = headers
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()


@contextmanager
def asking(server: Any, **settings: Any) -> Iterator[tuple[Judge, list[float]]]:
    """A judge at the server, and the pauses that were made (none is waited for)."""
    pauses: list[float] = []
    url = server if isinstance(server, str) else server.url
    judge = Judge(url, "judge-1", sleep=pauses.append, **settings)
    try:
        yield judge, pauses
    finally:
        judge.close()


def lost(judge: Judge) -> str:
    with pytest.raises(TrajectoryError) as caught:
        judge.ask("Is it right?")
    assert caught.value.kind is FailureKind.INFRASTRUCTURE
    assert caught.value.plugin == "llm_as_a_judge"
    return str(caught.value)


class TestJudge(EnvContract):
    prompt = ({"role": "user", "content": "What is 6 * 7?"},)
    actions = ("42", "41", "mumble", "### Final Score: 1", "{ground_truth}")

    @pytest.fixture(autouse=True)
    def _has_a_judge(self) -> Iterator[None]:
        with chat(judge_by_dashes) as server, asking(server) as (self.judge, _):
            yield

    def make(self, cap: int | None = None) -> Env:
        return JudgeEnv(ROW, self.judge)


# --- the env ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "reward", "reply", "metrics"),
    [
        ("It is 42.", 1.0, RIGHT, {"exact_match": 1.0, "judge_unreadable": 0.0}),
        ("It is 41.", 0.0, WRONG, {"exact_match": 0.0, "judge_unreadable": 0.0}),
        ("mumble", 0.0, "I cannot tell.", {"exact_match": 0.0, "judge_unreadable": 1.0}),
    ],
)
def test_the_judge_gives_the_reward(
    action: str, reward: float, reply: str, metrics: dict[str, float]
) -> None:
    with chat(judge_by_dashes) as server, asking(server) as (judge, _):
        env = JudgeEnv(ROW, judge)
        env.init(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]
        )
        step = env.step(action)
    assert step == {
        "observations": [],
        "reward": reward,
        "done": True,
        "metadata": {"judge": reply, "score": None if action == "mumble" else reward},
    }
    assert env.get_metrics() == metrics


def test_the_judge_sees_question_reference_and_answer() -> None:
    with chat(judge_by_dashes) as server, asking(server, additional={"top_p": 0.5}) as (judge, _):
        env = JudgeEnv(ROW, judge)
        env.init([{"role": "user", "content": "first"}, {"role": "user", "content": "6 * 7?"}])
        env.step("\ud800 {question}")
        ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    (message,) = body.pop("messages")
    assert body == {"model": "judge-1", "top_p": 0.5}
    assert message["role"] == "user"
    for text in ("Question:\n6 * 7?\n", "Reference answer:\n42\n", "\n\ud800 {question}\n---"):
        assert text in message["content"]


def test_a_prompt_without_reference_needs_none_in_the_row() -> None:
    with chat(lambda request: said("1")) as server, asking(server) as (judge, _):
        assert JudgeEnv({}, judge, prompt="Polite? {completion}").step("Thanks!")["reward"] == 1.0
        assert server.asked[0][2]["messages"][0]["content"] == "Polite? Thanks!"
        with pytest.raises(ValueError, match="'llm_as_a_judge' needs the column reward_spec"):
            JudgeEnv({}, judge)


# --- the client -------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with (
        chat(lambda request: (401, f"bad key {KEY}")) as server,
        asking(server, key_variable="JUDGE_KEY") as (judge, _),
    ):
        message = lost(judge)
        assert server.asked[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in message
    assert "refused with status 401: 'bad key ***'" in message
    assert "read from the environment variable JUDGE_KEY, which holds another" in message


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JUDGE_KEY", "the environment variable JUDGE_KEY, which is not set"),
        (None, "No key was sent: environment.llm_as_a_judge.key_variable is null"),
    ],
)
def test_a_missing_key_is_told(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, message: str
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with (
        chat(lambda request: (401, "no key")) as server,
        asking(server, key_variable=variable) as (judge, _),
    ):
        assert message in lost(judge)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses(status: int) -> None:
    answers = [(status, "busy")] * 3 + [said("1")]
    with chat(lambda request: answers.pop(0)) as server, asking(server) as (judge, pauses):
        assert judge.ask("?") == "1"
        assert pauses == [1, 2, 3]


def test_a_server_may_ask_for_a_longer_pause() -> None:
    answers = [(429, "busy"), said("1")]
    with (
        chat(lambda request: answers.pop(0), **{"Retry-After": "7"}) as server,
        asking(server) as (judge, pauses),
    ):
        assert judge.ask("?") == "1"
        assert pauses == [7]


def test_ten_attempts_are_all() -> None:
    with chat(lambda request: (503, "busy")) as server, asking(server) as (judge, pauses):
        message = lost(judge)
        assert len(server.asked) == 10
        assert pauses == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert "the judge 'judge-1' at http://127.0.0.1" in message
        assert "the last gave status 503: 'busy'" in message


def test_the_deadline_ends_it_before_a_pause_that_would_pass_it() -> None:
    with (
        chat(lambda request: (503, ""), **{"Retry-After": "60"}) as server,
        asking(server) as (judge, pauses),
    ):
        assert "1 attempt in" in lost(judge)
        assert pauses == []


def test_a_request_has_a_deadline_of_its_own() -> None:
    with (
        chat(lambda request: (0, "")) as server,
        asking(server, timeout_s=0.6, deadline_s=2.5) as (judge, _),
    ):
        assert "ReadTimeout" in lost(judge)
        assert len(server.asked) == 2


def test_after_a_lost_question_others_are_tried_once_until_one_succeeds() -> None:
    answers = [(503, "busy")] * 11 + [said("1")] + [(503, "busy")] * 3 + [said("0")]
    with chat(lambda request: answers.pop(0)) as server, asking(server) as (judge, pauses):
        lost(judge)
        assert "did not answer: 1 attempt in " in lost(judge)
        assert len(server.asked) == 11
        assert judge.ask("?") == "1"
        pauses.clear()
        assert judge.ask("?") == "0"
        assert pauses == [1, 2, 3]


def test_nobody_listening_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with asking(f"http://127.0.0.1:{port}/v1", deadline_s=2) as (judge, _):
        message = lost(judge)
    assert f"127.0.0.1:{port}/v1/chat/completions did not answer: 2 attempts" in message
    assert "Name another: environment.llm_as_a_judge.base_url" in message


@pytest.mark.parametrize("status", [301, 400, 404])
def test_what_cannot_pass_is_not_tried_again(status: int) -> None:
    with chat(lambda request: (status, "no such model")) as server, asking(server) as (judge, _):
        assert f"refused with status {status}: 'no such model'. Are environment" in lost(judge)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}']
)
def test_an_answer_that_is_none_of_a_chat_model_is_a_failure(body: str) -> None:
    with chat(lambda request: (200, body)) as server, asking(server) as (judge, _):
        assert "gave another answer than" in lost(judge)


def test_a_judge_that_says_nothing_is_unreadable() -> None:
    with chat(lambda request: said(None)) as server, asking(server) as (judge, _):
        env = JudgeEnv(ROW, judge)
        assert env.step("42")["reward"] == 0.0
        assert env.get_metrics()["judge_unreadable"] == 1.0


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with chat(lambda request: said("1")) as server, asking(server) as (judge, _):
        assert judge.ask("?") == "1"


# --- the plugin -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "variable", "expected"),
    [
        ("http://127.0.0.1:1/v1/", "http://127.0.0.1:2/v1", "http://127.0.0.1:1/v1"),
        (None, "http://127.0.0.1:2/v1", "http://127.0.0.1:2/v1"),
        (None, "", "https://api.openai.com/v1"),
    ],
)
def test_the_address_is_the_configs_or_the_environments_or_openais(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, variable: str, expected: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", variable)
    settings = {
        JudgeConfig: JudgeConfig(base_url=base_url),
        EnvironmentConfig: EnvironmentConfig(),
    }
    first, second = (make_env("llm_as_a_judge", settings, ROW) for _ in range(2))
    assert first is not None
    assert second is not None
    assert isinstance(first._judge, Judge)
    assert first._judge is second._judge
    assert first._judge._url == f"{expected}/chat/completions"
    assert make_env("gsm8k", settings, ROW) is None


def run(folder: Path, *overrides: str) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} + 1?"}],
            "env_class": "llm_as_a_judge",
            "reward_spec": {"method": "reward_model", "ground_truth": str(n + 1)},
        }
        for n in range(4)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def reply(ask: Ask) -> str:
        number = int(ask.text.partition("What is ")[2].partition(" ")[0])
        return "mumble" if number == 3 else f"it is {number + (number != 2)}"

    with installed(folder / "site"):
        result = run_scripted(
            folder,
            "environment.env_class=llm_as_a_judge",
            f"data.train_data=['{data}']",
            "data.val_data=[]",
            "data.shuffle=false",
            "trainer.train_batch_size=4",
            *overrides,
            script=Script(reply=reply),
            plugins=["llm_as_a_judge"],
        )
    return result.folder


def test_a_run_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat(judge_by_dashes) as server:
        folder = run(tmp_path, f"environment.llm_as_a_judge.base_url={server.url}")
        assert len(server.asked) == 8  # four prompts, two trajectories of each
        assert {body["model"] for _, _, body in server.asked} == {"gpt-4o-mini"}
        assert {body["temperature"] for _, _, body in server.asked} == {0.0}
        assert {headers["Authorization"] for _, headers, _ in server.asked} == {f"Bearer {KEY}"}
        judge = shared_judge(
            *(server.url, "gpt-4o-mini", '{"temperature": 0.0}'),
            key_variable="OPENAI_API_KEY",
            timeout_s=30.0,
            deadline_s=54.0,
        )
        judge.close()
    rows = read_trajectories(folder / "trajectories" / "step_1.parquet")
    assert [row["reward"] for row in rows] == [1, 1, 1, 1, 0, 0, 0, 0]
    line = next(read_lines(folder / "metrics.jsonl"))[1]
    assert line["environment/exact_match"] == 0.5
    assert line["environment/judge_unreadable"] == 0.25
    for file in folder.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file


def test_a_judge_that_is_down_costs_trajectories_and_is_no_reward(tmp_path: Path) -> None:
    down = "http://127.0.0.1:9/v1"
    with pytest.raises(FailureBudgetError) as caught:
        run(tmp_path, f"environment.llm_as_a_judge.base_url={down}", "environment.timeout_s=2")
    assert {failure.kind for failure in caught.value.failures} == {"infrastructure"}
    assert len(caught.value.failures) == 8
    assert f"at {down}/chat/completions did not answer" in caught.value.failures[0].message
