"""Threads under deadlines."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import pytest

from skyrl_kernel.rollout.deadline import CallTimeout, contained, within
from skyrl_kernel.rollout.workers import Workers

T = TypeVar("T")


def with_workers(use: Callable[[Workers], Awaitable[T]], size: int = 2) -> T:
    async def main() -> T:
        workers = Workers(size, "test")
        try:
            return await use(workers)
        finally:
            workers.close()

    return asyncio.run(main())


def test_results_and_exceptions_come_back() -> None:
    async def use(workers: Workers) -> tuple[int, str]:
        with pytest.raises(KeyError, match="no such"):
            await workers.call(lambda: {}["no such"], 5)
        return await workers.call(lambda: 42, 5), await workers.call(
            lambda: threading.current_thread().name, 5
        )

    assert with_workers(use) == (42, "test")


@pytest.mark.parametrize("error", [StopIteration(3), SystemExit("bye"), KeyboardInterrupt()])
def test_what_would_end_the_loop_fails_one_call(error: BaseException) -> None:
    def function() -> None:
        raise error

    async def use(workers: Workers) -> int:
        with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
            await workers.call(function, 5)
        assert caught.value.__cause__ is error
        return await workers.call(lambda: 1, 5)

    assert with_workers(use) == 1


def test_a_call_past_its_deadline_is_given_up_and_its_thread_replaced() -> None:
    release = threading.Event()

    async def use(workers: Workers) -> list[int]:
        hung = [asyncio.ensure_future(workers.call(release.wait, 0.1)) for _ in range(2)]
        after = [asyncio.ensure_future(workers.call(lambda n=n: n, 5)) for n in range(4)]
        for call in hung:
            with pytest.raises(CallTimeout, match=r"no answer within 0.1 s"):
                await call
        return await asyncio.gather(*after)

    try:
        assert with_workers(use) == [0, 1, 2, 3]  # both threads hung, and were replaced
    finally:
        release.set()


def test_no_more_threads_run_than_allowed() -> None:
    lock = threading.Lock()
    counts = {"now": 0, "most": 0}

    def count() -> None:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
        time.sleep(0.01)
        with lock:
            counts["now"] -= 1

    async def use(workers: Workers) -> None:
        await asyncio.gather(*(workers.call(count, 5) for _ in range(12)))

    with_workers(use, size=3)
    assert counts["most"] <= 3


def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    async def use(workers: Workers) -> int:
        task = asyncio.create_task(workers.call(lambda: time.sleep(0.2), 5))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await workers.call(lambda: 7, 5)

    assert with_workers(use, size=1) == 7


def test_a_coroutines_own_timeout_error_is_not_its_deadline() -> None:
    async def impatient() -> None:
        raise TimeoutError("a service")

    async def slow() -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        with pytest.raises(TimeoutError, match="a service"):
            await within(impatient(), 5)
        with pytest.raises(CallTimeout, match=r"no answer within 0.01 s"):
            await within(slow(), 0.01)

    asyncio.run(main())


def test_ordinary_exceptions_are_contained_as_they_are() -> None:
    error = ValueError("x")
    assert contained(error) is error


def test_every_one_of_many_calls_comes_back_whoever_hangs_or_is_slow() -> None:
    numbers = random.Random(0)
    release = threading.Event()

    def function(kind: str, number: int) -> int:
        if kind == "hang":
            release.wait(20)
        elif kind == "slow":
            time.sleep(0.003)
        elif kind == "raise":
            raise ValueError(number)
        return number

    async def caller(workers: Workers, number: int) -> None:
        for _ in range(20):
            kind = numbers.choices(["quick", "slow", "raise", "hang"], [80, 10, 9, 1])[0]
            found: object
            try:
                timeout_s = 0.3 if kind == "hang" else 20
                found = await workers.call(partial(function, kind, number), timeout_s)
            except (ValueError, CallTimeout) as error:
                found = type(error)
            assert found == {"raise": ValueError, "hang": CallTimeout}.get(kind, number)

    async def use(workers: Workers) -> int:
        return len(await asyncio.gather(*(caller(workers, number) for number in range(60))))

    try:
        assert with_workers(use, size=8) == 60
    finally:
        release.set()
