"""The long-lived form: answers, errors, deadlines, deaths."""

import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skyrl_kernel.errors import TrajectoryError
from skyrl_sandbox import (
    Limit,
    Limits,
    Sandbox,
    Worker,
    WorkerDied,
    WorkerError,
    WorkerTimeout,
)

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: that workers answer and end was not checked",
)

MODULE = """
import os, sys, time

calls = 0

def handle(request):
    global calls
    calls += 1
    return {"calls": calls, "request": request}

def evaluate(expression):
    return eval(expression)

class Odd(Exception):
    pass

def fail(request):
    print("to standard output", flush=True)
    raise Odd(f"no {request}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "handlers"  # pytest's own is private
    folder.mkdir()
    (folder / "handlers.py").write_text(MODULE)
    return folder


@pytest.fixture
def sandbox(folder: Path) -> Sandbox:
    return Sandbox(
        python_path=[folder], limits=Limits(wall_s=5, cpu_s=None, memory_mb=256, output_kb=64)
    )


def test_it_answers_and_remembers(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:handle") as worker:
        assert worker.call({"a": [1, "ü", None]}) == {"calls": 1, "request": {"a": [1, "ü", None]}}
        assert worker.call(2) == {"calls": 2, "request": 2}
        assert worker.alive
    assert not worker.alive


def test_an_answer_takes_well_under_a_millisecond_or_so(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:handle") as worker:
        began = time.perf_counter()
        for _ in range(200):
            worker.call(1)
        assert (time.perf_counter() - began) / 200 < 0.01


def test_what_the_handler_raises_is_raised_here_and_the_worker_goes_on(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:fail") as worker:
        for request in (1, 2):
            with pytest.raises(WorkerError, match=f"^Odd: no {request}$") as caught:
                worker.call(request)
        assert "handlers.py" in caught.value.trace


@pytest.mark.parametrize(
    ("expression", "error"),
    [("object()", "TypeError"), ("sys.exit(3)", "SystemExit: 3"), ("1/0", "ZeroDivisionError")],
)
def test_no_answer_is_an_error_too(sandbox: Sandbox, expression: str, error: str) -> None:
    with Worker(sandbox, "handlers:evaluate") as worker:
        with pytest.raises(WorkerError, match=error):
            worker.call(expression)
        assert worker.call("6 * 7") == 42


@pytest.mark.parametrize("forged", ["b'[' * 40000", "b'[1, null, 5]'", "b'[1, null, []]'", "b'7'"])
def test_a_forged_answer_that_is_none_is_a_death_and_nothing_else(
    sandbox: Sandbox, forged: str
) -> None:
    # Descriptor 4 is where it answers: 0, 1 and 2 are the program's, 3 is where requests come from.
    with Worker(sandbox, "handlers:evaluate") as worker:
        with pytest.raises(WorkerDied, match="its answer is none"):
            worker.call(f"os.write(4, {forged} + bytes([10]))")
        assert not worker.alive


def test_printing_is_not_answering(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:evaluate") as worker:
        assert worker.call("print('[1, 666, null]') or os.write(1, b'[1, 666, null]\\n')") == 15
        assert worker.call("sys.stdin.read()") == ""  # nor is its input theirs


def test_a_hang_ends_at_the_deadline_and_the_worker_with_it(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:evaluate") as worker:
        began = time.monotonic()
        with pytest.raises(WorkerTimeout, match=r"no answer within 0\.3 s"):
            worker.call("time.sleep(60)", timeout_s=0.3)
        assert time.monotonic() - began < 2
        assert not worker.alive
        with pytest.raises(WorkerDied, match="it was killed"):
            worker.call("1")


def test_a_deadline_holds_for_a_request_that_is_not_read(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:evaluate") as worker:
        thread = threading.Thread(target=lambda: _ignore(worker, "time.sleep(60)", 1.0))
        thread.start()
        thread.join()
        with pytest.raises(WorkerDied):
            worker.call("x" * 10_000_000, timeout_s=0.3)


def test_a_death_is_told_with_its_last_words(sandbox: Sandbox) -> None:
    with (
        Worker(sandbox, "handlers:evaluate") as worker,
        pytest.raises(WorkerDied, match=r"ended with exit code 9; its last words: farewell"),
    ):
        worker.call("(print('farewell', flush=True), os._exit(9))")


@pytest.mark.parametrize(
    ("expression", "limit"),
    [
        ("[os.fork() for _ in range(3)] and [bytearray(os.urandom(10**6)) for _ in range(150)]"
         " and time.sleep(9)", Limit.MEMORY),
        ("[open(f'/tmp/{i}', 'w').close() for i in range(10**6)]", Limit.FILES),
        ("'x' * 100_000", Limit.OUTPUT),
    ],
)  # fmt: skip
def test_limits_hold_for_workers(sandbox: Sandbox, expression: str, limit: Limit) -> None:
    with Worker(sandbox, "handlers:evaluate") as worker:
        with pytest.raises(WorkerDied, match=f"it exceeded the limit '{limit}'") as caught:
            worker.call(expression)
        assert caught.value.limit is limit


def test_limits_hold_between_calls(folder: Path) -> None:
    limits = Limits(cpu_s=None, wall_s=5, memory_mb=256, processes=8)
    with Worker(Sandbox(python_path=[folder], limits=limits), "handlers:evaluate") as worker:
        # A thread goes on after the answer, and each of four children takes 90 MB.
        grow = "[os.fork() or (b'x' * 90_000_000, time.sleep(9)) for _ in range(4)]"
        worker.call(f"__import__('threading').Thread(target=evaluate, args=({grow!r},)).start()")
        _until(lambda: not worker.alive)
        with pytest.raises(WorkerDied, match="it exceeded the limit 'memory'"):
            worker.call("1")


def test_a_handler_that_is_not_there_is_told_at_the_start(sandbox: Sandbox) -> None:
    with pytest.raises(WorkerError, match="No module named 'nowhere'"):
        Worker(sandbox, "nowhere:handle")
    with pytest.raises(WorkerError, match="has no attribute 'missing'"):
        Worker(sandbox, "handlers:missing")


def test_threads_take_turns(sandbox: Sandbox) -> None:
    with Worker(sandbox, "handlers:handle") as worker, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(worker.call, range(200)))
    assert [answer["request"] for answer in answers] == list(range(200))
    assert sorted(answer["calls"] for answer in answers) == list(range(1, 201))


def test_nothing_is_left_of_closed_workers(sandbox: Sandbox) -> None:
    Worker(sandbox, "handlers:handle").close()
    files, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        Worker(sandbox, "handlers:handle").close()
        with pytest.raises(WorkerError):
            Worker(sandbox, "nowhere:handle")
    assert set(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def test_a_sandbox_that_cannot_start_is_not_the_handlers_fault(folder: Path) -> None:
    sandbox = Sandbox(python_path=[folder])
    shutil.rmtree(folder)
    with pytest.raises(TrajectoryError, match="the sandbox failed: bubblewrap said: bwrap: "):
        Worker(sandbox, "handlers:handle")


def _ignore(worker: Worker, request: str, timeout_s: float) -> None:
    with contextlib.suppress(WorkerTimeout):
        worker.call(request, timeout_s=timeout_s)


def _until(condition, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
