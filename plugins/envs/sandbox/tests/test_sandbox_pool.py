"""Workers that are lent out: used again, replaced, ended."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from skyrl_sandbox import (
    Limits,
    Sandbox,
    WorkerDied,
    WorkerError,
    WorkerPool,
    WorkerTimeout,
)

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="bubblewrap is not installed: that workers are lent and replaced was not checked",
)

NAMED = "__import__('os').readlink('/proc/self/ns/pid')"
"""Another sandbox has another namespace."""


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(Sandbox(limits=Limits(wall_s=10, cpu_s=None)), "builtins:eval") as pool:
        yield pool


def test_one_after_the_other_uses_the_same(pool: WorkerPool) -> None:
    assert len({pool.call(NAMED) for _ in range(5)}) == 1


def test_an_error_of_the_handler_changes_nothing(pool: WorkerPool) -> None:
    name = pool.call(NAMED)
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        pool.call("1 / 0")
    assert pool.call(NAMED) == name


def test_calls_at_the_same_time_have_one_each(pool: WorkerPool) -> None:
    together = threading.Barrier(4)

    def call(_: int) -> str:
        with pool.lent() as worker:
            together.wait(20)
            return str(worker.call(NAMED))

    with ThreadPoolExecutor(4) as threads:
        names = set(threads.map(call, range(4)))
    assert len(names) == 4
    assert pool.call(NAMED) in names


@pytest.mark.parametrize(
    ("request_", "error"),
    [("__import__('time').sleep(60)", WorkerTimeout), ("__import__('os')._exit(1)", WorkerDied)],
)
def test_one_that_hangs_or_dies_is_replaced(
    pool: WorkerPool, request_: str, error: type[Exception]
) -> None:
    name = pool.call(NAMED)
    with pytest.raises(error):
        pool.call(request_, timeout_s=0.5)
    assert pool.call(NAMED) != name


def test_one_that_dies_while_it_is_free_is_replaced(pool: WorkerPool) -> None:
    with pool.lent() as worker:
        name = worker.call(NAMED)
        worker.call("__import__('threading').Timer(0.1, lambda: __import__('os')._exit(1)).start()")
    while worker.alive:
        time.sleep(0.02)
    assert pool.call(NAMED) != name


def test_one_that_is_lent_keeps_what_was_left_in_it(pool: WorkerPool) -> None:
    with pool.lent() as worker:
        worker.call("globals().update(left=7)")
        assert worker.call("left") == 7


def test_a_closed_pool_has_no_workers_and_can_go_on(pool: WorkerPool) -> None:
    pool.call("1")
    pool.close()
    files, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    pool.call("1")
    pool.close()
    assert set(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads
    assert pool.call("6 * 7") == 42
