"""Classes written for skyrl-gym do here what they do there, in this process and in the sandbox."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_gym_adapter.envs import InProcessEnv, SandboxedEnv
from skyrl_gym_adapter.episode import plain
from skyrl_gym_adapter.recipe import Recipe
from skyrl_gym_adapter.workers import GymWorker

Make = Callable[..., Recipe]
Kind = type[InProcessEnv] | type[SandboxedEnv]
PROMPT = [{"role": "user", "content": "?"}]
ROW = {"reward_spec": {"ground_truth": "7"}}


def played(env: InProcessEnv | SandboxedEnv, *actions: str) -> tuple[list[Any], Any]:
    """The steps of an episode that these actions end, and its metrics."""
    env.init(PROMPT)
    try:
        return [env.step(action) for action in actions], env.get_metrics()
    finally:
        env.close()


def test_an_episode_of_several_turns(kind: Kind, recipe: Make) -> None:
    env = kind(recipe("guessing:Guess"), ROW)
    prompt, info = env.init(PROMPT)
    assert prompt == [*PROMPT, {"role": "user", "content": "Between 1 and 9."}]
    assert info == {"range": [1, 9]}
    assert env.step(" 3 ") == {
        "observations": [{"role": "user", "content": "higher"}],
        "reward": 0.0,
        "done": False,
        "metadata": {"guess": 3, "all": [3]},  # numpy's number and the set became JSON's
        "postprocessed_action": "3",
    }
    last = env.step("7")
    assert last["reward"] == 1.0
    assert type(last["reward"]) is float
    assert last["done"] is True
    # Guess.aggregate_metrics over the one episode of two turns, which was no lucky hit
    assert env.get_metrics() == {"avg_turns": 2.0, "lucky": 0.0}
    env.close()


def test_the_row_and_the_settings_reach_the_class(kind: Kind, recipe: Make) -> None:
    made = recipe("guessing:Guess", env_config={"guessing:Guess": {"bonus": 0.25}})
    steps, _ = played(kind(made, {**ROW, "max_turns": 2}), "1", "2")
    assert [step["reward"] for step in steps] == [0.25, 0.25]
    assert [step["done"] for step in steps] == [False, True]


def test_a_class_may_look_at_the_conversation_that_it_began(kind: Kind, recipe: Make) -> None:
    steps, _ = played(kind(recipe("guessing:Looks"), ROW), "1", " 9", "7")
    began = ["?", "Between 1 and 9."]
    assert [step["metadata"]["history"] for step in steps] == [
        began,
        [*began, "1", "higher"],
        [*began, "1", "higher", "9", "lower"],  # the postprocessed action
    ]


def test_a_function_and_a_registered_id_are_entry_points_too(recipe: Make) -> None:
    for made in (
        recipe("guessing:make_guess"),
        recipe("mine", ids={"mine": "guessing:Guess"}),
        recipe("guess_registered", modules=["guessing_ids"]),
    ):
        steps, _ = played(InProcessEnv(made, ROW), "7")
        assert steps[0]["reward"] == 1.0


def test_inside_too(recipe: Make, bwrap: str) -> None:
    made = recipe("guess_registered", modules=["guessing_ids"], ids={"mine": "guessing:Guess"})
    steps, _ = played(SandboxedEnv(made, ROW), "7")
    assert steps[0]["reward"] == 1.0


def test_a_module_of_the_current_folder_is_found(
    kind: Kind, recipe: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    steps, _ = played(kind(recipe("guessing:Guess", folders=[]), ROW), "7")
    assert steps[0]["reward"] == 1.0


def test_what_the_class_raises_is_told(kind: Kind, recipe: Make) -> None:
    env = kind(recipe("guessing:Guess"), ROW)
    with pytest.raises(Exception, match="reward_spec field is required"):
        kind(recipe("guessing:Guess"), {}).init(PROMPT)
    env.init(PROMPT)
    with pytest.raises(Exception, match=r"AttributeError: .*int.* has no attribute 'strip'|strip"):
        env.step(7)  # type: ignore[arg-type]
    env.close()


def test_a_class_that_asks_for_skyrls_turn_limit_is_told_how_to_set_it(
    kind: Kind, recipe: Make
) -> None:
    with pytest.raises(Exception, match=r"set generator\.max_turns"):
        kind(recipe("guessing:NeedsTurns"), ROW).init(PROMPT)
    steps, _ = played(kind(recipe("guessing:NeedsTurns"), {**ROW, "max_turns": 1}), "1")
    assert steps[0]["done"]


@pytest.mark.parametrize("strange", ["", "\ud800", "\x00", "日本語", "x" * 100_000])
def test_both_ways_answer_strange_completions_alike(strange: str, recipe: Make, bwrap: str) -> None:
    made = recipe("guessing:Guess")
    assert played(InProcessEnv(made, ROW), strange, "7") == played(
        SandboxedEnv(made, ROW), strange, "7"
    )


def test_plain_keeps_what_json_has() -> None:
    value = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
    assert plain(value) == value == json.loads(json.dumps(plain(value)))
    assert plain(object) == "<class 'object'>"


# --- in the sandbox ----------------------------------------------------------------------


@pytest.fixture
def run(recipe: Make, bwrap: str) -> Callable[[str], Any]:
    """Have the class `Runs` execute a program, in an episode of its own; what it left in ``answer``."""

    def execute(program: str) -> Any:
        steps, _ = played(SandboxedEnv(recipe("guessing:Runs"), {}), program)
        return steps[0]["metadata"]["answer"]

    return execute


def test_it_sees_no_file_of_the_host_but_its_module(
    run: Callable[[str], Any], folder: Path
) -> None:
    secret = folder.parent / "secret"
    secret.write_text("x")
    assert "No such file" in run(f"open({str(secret)!r}).read()")
    assert "No such file" in run("open('/etc/passwd').read()")
    assert "Read-only file system" in run(f"open({str(folder / 'guessing.py')!r}, 'w')")


def test_of_the_current_folder_it_sees_the_module_alone(
    recipe: Make, folder: Path, bwrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    program = f"import os; answer = os.listdir({str(folder)!r})"
    steps, _ = played(SandboxedEnv(recipe("guessing:Runs", folders=[]), {}), program)
    assert steps[0]["metadata"]["answer"] == ["guessing.py"]


def test_it_reaches_no_network_and_no_variable(
    run: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert "Error" in run("import socket; socket.create_connection(('1.1.1.1', 53), 2)")
    assert run("import os; answer = os.environ.get('WANDB_API_KEY')") is None


def test_nothing_of_one_episode_is_there_in_the_next(run: Callable[[str], Any]) -> None:
    before = run("import os; answer = os.listdir('/tmp')")
    daemon = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    run(
        "import os, subprocess, sys\n"
        "seen.append(1)\n"
        "type(env).step = lambda self, action: {'observations': [], 'reward': 1.0, 'done': True}\n"
        "open('/tmp/left', 'w').write('x'); os.makedirs('/tmp/a/b'); os.chmod('/tmp/a', 0)\n"
        f"{daemon}\n"
    )
    told = run(
        "import os\n"
        "names = [open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()]\n"
        "answer = [seen, os.listdir('/tmp'), [n for n in names if 'sleep' in n]]"
    )
    assert told == [[], before, []]


def test_an_episode_costs_no_import(run: Callable[[str], Any]) -> None:
    run("")
    began = time.monotonic()
    for _ in range(10):
        run("")
    assert (time.monotonic() - began) / 10 < 0.2  # importing skyrl-gym takes a second or two


def test_an_env_whose_process_ends_is_an_error_and_the_next_one_works(
    recipe: Make, run: Callable[[str], Any]
) -> None:
    with pytest.raises(Exception, match="the env's process ended during a call"):
        run("import os; os._exit(0)")
    assert run("answer = 6 * 7") == 42


def test_a_worker_is_told_apart_by_its_recipe(recipe: Make, bwrap: str) -> None:
    first = recipe("guessing:Guess")
    other = recipe("guessing:Guess", env_config={"guessing:Guess": {"bonus": 1.0}})
    rewards = [
        played(SandboxedEnv(made, ROW), "1", "1", "1")[0][0]["reward"] for made in (first, other)
    ]
    assert rewards == [0.0, 1.0]


def test_what_cannot_be_imported_inside_says_where_modules_are_looked_for(
    recipe: Make, bwrap: str
) -> None:
    with pytest.raises(Exception, match=r"'nowhere'.*cannot be imported.*skyrl_gym\.folders"):
        GymWorker(recipe("nowhere:Env"))


# --- ports ------------------------------------------------------------------------------------


class _Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))[::-1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on the loopback device that turns bodies round."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.slow
def test_a_port_that_was_named_is_reached_from_inside_and_no_other(
    recipe: Make, port: int, bwrap: str
) -> None:
    ask = (
        "import requests\n"
        "with requests.Session() as session:\n"
        f"    texts = [session.post('http://127.0.0.1:{port}/x', data=b'ab' * n).text for n in (1, 100000)]\n"
        "answer = [texts[0], len(texts[1])]"
    )
    open_one = recipe("guessing:Runs", ports=[port])
    for _ in range(2):  # the next episode too
        steps, _ = played(SandboxedEnv(open_one, {}), ask)
        assert steps[0]["metadata"]["answer"] == ["ba", 200_000]
    other = f"import socket; socket.create_connection(('127.0.0.1', {port + 1}), 2)"
    steps, _ = played(SandboxedEnv(open_one, {}), other)
    assert "ConnectionRefusedError" in steps[0]["metadata"]["answer"]
    steps, _ = played(SandboxedEnv(recipe("guessing:Runs"), {}), ask)
    assert "ConnectionError" in steps[0]["metadata"]["answer"]
