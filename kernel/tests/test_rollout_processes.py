"""Envs in processes of their own: killed at the deadline, used again, replaced when they die."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import pytest

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.protocols import HostedEnv
from skyrl_kernel.records import Prompt
from skyrl_kernel.rollout.env_host import EnvHost
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.testing.scripted import make_scripted_env

T = TypeVar("T")


def isolated(
    use: Callable[[EnvHost], Awaitable[T]], *, timeout_s: float = 20.0, size: int = 1
) -> T:
    async def main() -> T:
        pool = EnvProcessPool(make_scripted_env, size)
        host = EnvHost(make_scripted_env, pool, timeout_s=timeout_s, workers=4, max_turns=None)
        try:
            return await use(host)
        finally:
            await host.close()

    return asyncio.run(main())


def env_of(host: EnvHost, **row: Any) -> HostedEnv:
    return host.host(
        Prompt(
            uid="0",
            messages=[{"role": "user", "content": "x"}],
            env_class="scripted",
            extras={"isolate": True, "answer": "1", **row},
        )
    )


async def episode(env: HostedEnv) -> int:
    """One turn; returns the id of the process that played it."""
    try:
        await env.init()
        step = await env.step("1")
        await env.finish()
        return int(step["metadata"]["pid"])
    except BaseException:
        await env.discard()
        raise


async def lost(env: HostedEnv) -> TrajectoryError:
    with pytest.raises(TrajectoryError) as caught:
        await episode(env)
    return caught.value


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_isolated_env_plays_in_another_process_which_serves_the_next_one() -> None:
    async def use(host: EnvHost) -> list[int]:
        return [
            await episode(env_of(host)),
            await episode(env_of(host)),
            await episode(env_of(host, is_async=True)),
        ]

    pids = isolated(use)
    assert len(set(pids)) == 1
    assert pids[0] != os.getpid()
    assert not is_running(pids[0])  # it ended with the host


def test_an_env_that_raises_keeps_its_process() -> None:
    async def use(host: EnvHost) -> tuple[int, list[TrajectoryError], int]:
        before = await episode(env_of(host))
        faults = ["__init__ raise", "init raise", "step raise", "get_metrics raise"]
        errors = [await lost(env_of(host, fault=fault)) for fault in faults]
        errors.append(await lost(env_of(host, fault="step sys_exit")))
        return before, errors, await episode(env_of(host))

    before, errors, after = isolated(use)
    assert [error.kind for error in errors] == [FailureKind.TASK] * 5
    assert [str(error) for error in errors[:4]] == [
        f"env 'scripted' failed in {method}: RuntimeError: the row asked for it"
        for method in ("init", "init", "step", "get_metrics")
    ]
    assert "SystemExit: the env gave up" in str(errors[4])
    assert after == before


@pytest.mark.parametrize("method", ["__init__", "step"])
def test_what_an_env_says_failed_comes_back_from_its_process(method: str) -> None:
    async def use(host: EnvHost) -> tuple[int, TrajectoryError, int]:
        before = await episode(env_of(host))
        return (
            before,
            await lost(env_of(host, fault=f"{method} service")),
            await episode(env_of(host)),
        )

    before, error, after = isolated(use)
    assert error.kind is FailureKind.INFRASTRUCTURE
    assert str(error).endswith(": a service of the env is down")
    assert error.plugin == "scripted"
    assert after == before


def test_an_env_that_raises_in_close_is_lost_with_its_process() -> None:
    async def use(host: EnvHost) -> tuple[TrajectoryError, int]:
        return await lost(env_of(host, fault="close raise")), await episode(env_of(host))

    error, pid = isolated(use)
    assert (error.kind, "failed in close" in str(error)) == (FailureKind.TASK, True)
    assert pid > 0


def test_an_env_that_hangs_is_killed_at_the_deadline_and_replaced() -> None:
    async def use(host: EnvHost) -> tuple[int, TrajectoryError, int, float]:
        before = await episode(env_of(host))
        started = time.monotonic()
        error = await lost(env_of(host, fault="step hang"))
        waited_s = time.monotonic() - started
        assert not is_running(before)
        host.timeout_s = 20.0  # a new process imports first
        return before, error, await episode(env_of(host)), waited_s

    async def with_deadline(host: EnvHost) -> tuple[int, TrajectoryError, int, float]:
        await episode(env_of(host))  # the process is up
        host.timeout_s = 0.3
        return await use(host)

    before, error, after, waited_s = isolated(with_deadline)
    assert error.kind is FailureKind.TIMEOUT
    assert "did not answer step within 0.3 s" in str(error)
    assert after != before
    assert waited_s < 10


def test_an_env_whose_process_dies_is_an_infrastructure_failure() -> None:
    async def use(host: EnvHost) -> tuple[TrajectoryError, int]:
        return await lost(env_of(host, fault="step die")), await episode(env_of(host))

    error, pid = isolated(use)
    assert error.kind is FailureKind.INFRASTRUCTURE
    assert str(error) == "env 'scripted' failed in step: its process ended with exit code 7"
    assert pid > 0


def test_a_result_that_cannot_travel_costs_the_trajectory() -> None:
    async def use(host: EnvHost) -> TrajectoryError:
        return await lost(env_of(host, fault="step unpicklable"))

    error = isolated(use)
    assert error.kind is FailureKind.TASK
    assert "failed in step" in str(error)


def test_no_more_processes_run_than_allowed() -> None:
    async def use(host: EnvHost) -> list[int]:
        return await asyncio.gather(*(episode(env_of(host)) for _ in range(6)))

    assert len(set(isolated(use, size=2))) == 2


def test_a_process_that_died_while_idle_costs_nothing() -> None:
    async def use(host: EnvHost) -> tuple[int, int]:
        pid = await episode(env_of(host))
        os.kill(pid, 9)
        await asyncio.sleep(0.2)
        return pid, await episode(env_of(host))

    before, after = isolated(use)
    assert after != before


def test_closing_ends_a_process_that_is_busy() -> None:
    async def use(host: EnvHost) -> tuple[int, float]:
        pid = await episode(env_of(host))
        task = asyncio.create_task(episode(env_of(host, fault="step hang")))
        await asyncio.sleep(0.3)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid, time.monotonic() - started

    pid, waited_s = isolated(use)
    assert not is_running(pid)
    assert waited_s < 5


def test_rows_reach_the_process_whole() -> None:
    async def use(host: EnvHost) -> Mapping[str, Any]:
        env = env_of(host, rewards=[0.25], is_async=True)
        await env.init()
        step = await env.step("1")
        await env.finish()
        return step

    assert isolated(use)["reward"] == 0.25
