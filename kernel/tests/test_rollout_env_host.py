"""Envs under deadlines, in threads: what each fault becomes, and what it leaves behind."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pytest

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.protocols import HostedEnv
from skyrl_kernel.records import Prompt
from skyrl_kernel.rollout.env_host import EnvHost, MakeEnv
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.testing.scripted import ScriptedEnv, make_scripted_env

T = TypeVar("T")

MESSAGES = [{"role": "user", "content": "x"}]


def hosting(
    use: Callable[[EnvHost], Awaitable[T]],
    *,
    make: MakeEnv = make_scripted_env,
    timeout_s: float = 10.0,
    workers: int = 4,
) -> T:
    """What ``use`` returns for a host of these envs."""

    async def main() -> T:
        pool = EnvProcessPool(make_scripted_env, 2)
        host = EnvHost(make, pool, timeout_s=timeout_s, workers=workers, max_turns=None)
        try:
            return await use(host)
        finally:
            await host.close()

    return asyncio.run(main())


def env_of(host: EnvHost, **row: Any) -> HostedEnv:
    return host.host(Prompt(uid="0", messages=MESSAGES, env_class="scripted", extras=row))


async def episode(env: HostedEnv) -> Mapping[str, float]:
    """One turn, as the agent plays it."""
    try:
        await env.init()
        await env.step("1")
        return await env.finish()
    except BaseException:
        await env.discard()
        raise


def failure(row: Mapping[str, Any], **options: Any) -> TrajectoryError:
    """What an episode of this row is lost by."""
    with pytest.raises(TrajectoryError) as caught:
        hosting(lambda host: episode(env_of(host, **row)), **options)
    assert caught.value.plugin == "scripted"
    return caught.value


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["__init__", "init", "step", "get_metrics", "close"])
def test_an_env_that_raises_costs_its_trajectory_as_a_task_failure(
    method: str, is_async: bool
) -> None:
    closed = ScriptedEnv.closed
    error = failure({"fault": f"{method} raise", "is_async": is_async})

    shown = "init" if method == "__init__" else method
    assert error.kind is FailureKind.TASK
    assert str(error) == f"env 'scripted' failed in {shown}: RuntimeError: the row asked for it"
    assert ScriptedEnv.closed == closed + (method != "__init__")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("sys_exit", "SystemExit: the env gave up"),
        ("stop_iteration", "StopIteration"),
        ("timeout", "TimeoutError: a service of the env did not answer"),
    ],
)
def test_exceptions_with_a_meaning_of_their_own_are_still_the_envs(
    what: str, message: str, is_async: bool
) -> None:
    # sys.exit() would end the run, StopIteration would never leave the future, and a TimeoutError
    # that the env raises is no deadline of ours.
    error = failure({"fault": f"step {what}", "is_async": is_async})

    assert error.kind is FailureKind.TASK
    assert message in str(error)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["__init__", "init", "step", "get_metrics", "close"])
def test_an_env_may_say_itself_what_failed(method: str, is_async: bool) -> None:
    error = failure({"fault": f"{method} service", "is_async": is_async})

    shown = "init" if method == "__init__" else method
    assert error.kind is FailureKind.INFRASTRUCTURE
    assert str(error) == f"env 'scripted' failed in {shown}: a service of the env is down"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("init none", "init returned None (NoneType); it must return (prompt, information)"),
        ("step none", "step returned None (NoneType); it must return a mapping as EnvStep"),
        ("step nan", "step returned the reward nan; it must be finite"),
        ("step infinite", "step returned the reward inf; it must be finite"),
        ("step bool", "step returned the reward True (bool); it must be a number"),
        ("step text", "step returned the reward '1.0' (str); it must be a number"),
        ("step no_reward", "step returned no reward; it returned: observations, done"),
        ("step done_text", "step returned done='yes' (str); it must be True or False"),
        ("step bad_observations", "step returned observations ['hello'] (list); they must be cha"),
        ("get_metrics none", "get_metrics returned None (NoneType); it must be a mapping of num"),
        ("get_metrics nan_metric", "get_metrics returned bad=nan; it must be finite"),
    ],
)
def test_a_wrong_result_costs_its_trajectory_and_is_described(fault: str, message: str) -> None:
    error = failure({"fault": fault})

    assert error.kind is FailureKind.TASK
    assert f"env 'scripted' broke its contract: {message}" in str(error)


class Returns(TextEnv):
    """An env whose `step` returns this."""

    def __init__(self, **step: Any) -> None:
        super().__init__({})
        self._step = {"observations": [], "reward": 0.0, "done": True, "metadata": {}} | step

    def step(self, action: str) -> Any:
        return self._step


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"metadata": [1]}, r"metadata \[1\] \(list\); it must be a mapping"),
        ({"postprocessed_action": 7}, r"postprocessed_action 7 \(int\); it must be text"),
        ({"reward": "x" * 200}, r"the reward 'x{76}\.\.\. \(str\)"),
    ],
)
def test_the_optional_parts_of_a_step_are_checked_too(step: dict, message: str) -> None:
    with pytest.raises(TrajectoryError, match=message):
        hosting(lambda host: episode(env_of(host)), make=lambda *args: Returns(**step))


def test_numbers_and_booleans_of_numpy_are_as_good_as_pythons() -> None:
    async def use(host: EnvHost) -> EnvStep:
        env = env_of(host)
        await env.init()
        step = await env.step("a")
        await env.finish()
        return step

    step = hosting(
        use, make=lambda *args: Returns(reward=np.float32(0.5), done=np.bool_(True), metadata=None)
    )
    assert (step["reward"], step["done"], step["metadata"]) == (0.5, True, {})
    assert type(step["reward"]) is float
    assert type(step["done"]) is bool


def test_an_env_without_a_method_is_told_which() -> None:
    class Half:
        def init(self, prompt: Any) -> Any:
            return prompt, {}

        def close(self) -> None: ...

    with pytest.raises(TrajectoryError, match=r"failed in step: AttributeError.*'step'"):
        hosting(lambda host: episode(env_of(host)), make=lambda *args: Half())


def test_a_row_that_an_env_changes_is_whole_for_the_next_one() -> None:
    class Empties(TextEnv):
        def __init__(self, extras: Any) -> None:
            super().__init__(extras)
            extras["reward_spec"]["ground_truth"] = "changed"

        def init(self, prompt: Any) -> Any:
            prompt[0]["content"] = "changed"
            return prompt, {}

        def step(self, action: str) -> EnvStep:
            return EnvStep(observations=[], reward=0.0, done=True, metadata={})

    prompt = Prompt(
        uid="0",
        messages=[{"role": "user", "content": "x"}],
        env_class="scripted",
        extras={"reward_spec": {"ground_truth": "1"}},
    )
    hosting(lambda host: episode(host.host(prompt)), make=lambda name, extras, cap: Empties(extras))
    assert prompt.extras == {"reward_spec": {"ground_truth": "1"}}
    assert prompt.messages == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("method", ["init", "step", "get_metrics", "close"])
def test_an_async_env_that_hangs_is_cancelled_at_the_deadline(method: str) -> None:
    started = time.monotonic()
    error = failure({"fault": f"{method} hang", "is_async": True}, timeout_s=0.05)

    assert error.kind is FailureKind.TIMEOUT
    assert f"did not answer {method} within 0.05 s (environment.timeout_s)" in str(error)
    assert time.monotonic() - started < 5


def test_a_hung_thread_is_abandoned_and_its_class_runs_in_processes_from_then_on() -> None:
    async def use(host: EnvHost) -> tuple[TrajectoryError, TrajectoryError, Mapping[str, float]]:
        async def lost(**row: Any) -> TrajectoryError:
            with pytest.raises(TrajectoryError) as caught:
                await episode(env_of(host, **row))
            return caught.value

        first = await lost(fault="step hang")
        assert host.in_processes == {"scripted"}
        second = await lost(fault="step hang")  # killed, with its process
        return first, second, await episode(env_of(host, answer="1"))

    first, second, metrics = hosting(use, timeout_s=0.3, workers=1)

    assert first.kind is second.kind is FailureKind.TIMEOUT
    assert metrics == {"exact_match": 1.0, "turns": 1.0}


def test_other_envs_go_on_while_one_hangs() -> None:
    async def use(host: EnvHost) -> list[Any]:
        rows = [{"fault": "step hang"}, *({"answer": "1"} for _ in range(5))]
        return await asyncio.gather(
            *(episode(env_of(host, **row)) for row in rows), return_exceptions=True
        )

    hung, *others = hosting(use, timeout_s=0.3, workers=2)
    assert isinstance(hung, TrajectoryError)
    assert [one["exact_match"] for one in others] == [1.0] * 5


def test_waiting_for_a_free_thread_does_not_count_against_the_deadline() -> None:
    class Slow(ScriptedEnv):
        def step(self, action: str) -> Any:
            time.sleep(0.1)
            return super().step(action)

    async def use(host: EnvHost) -> list[Any]:
        return await asyncio.gather(*(episode(env_of(host, answer="1")) for _ in range(6)))

    # One thread: the last of the six waits 0.5 s, longer than the deadline of each call.
    assert len(hosting(use, make=lambda n, e, c: Slow(e), timeout_s=0.4, workers=1)) == 6


def test_a_cancelled_episode_does_not_touch_its_running_env() -> None:
    in_step = threading.Event()
    go_on = threading.Event()
    log: list[str] = []

    class Slow(TextEnv):
        def step(self, action: str) -> EnvStep:
            in_step.set()
            go_on.wait(10)
            log.append("step")
            return EnvStep(observations=[], reward=0.0, done=True, metadata={})

        def close(self) -> None:
            log.append("close")

    async def use(host: EnvHost) -> float:
        task = asyncio.create_task(episode(env_of(host)))
        while not in_step.is_set():
            await asyncio.sleep(0.001)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    try:
        waited_s = hosting(use, make=lambda n, e, c: Slow(e))
    finally:
        go_on.set()
    assert waited_s < 5  # it did not wait for the call, or for a close behind it
    assert "close" not in log


def test_a_thousand_quick_episodes_take_a_moment() -> None:
    async def use(host: EnvHost) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(episode(env_of(host, answer="1")) for _ in range(1000)))
        return time.perf_counter() - started

    # Some 0.2 s here (3 trips to a thread each); 10 s would mean that something polls.
    assert hosting(use, workers=32) < 10


class Instant(TextEnv):
    """Says where it is called; hangs if its row says so."""

    instant = True

    def step(self, action: str) -> EnvStep:
        if action == "hang":
            time.sleep(60)
        if action == "fail":
            raise ValueError("no such answer")
        thread = threading.current_thread() is threading.main_thread()
        return EnvStep(observations=[], reward=float(thread), done=True, metadata={})

    def get_metrics(self) -> Mapping[str, float]:
        return {"in_main": float(threading.current_thread() is threading.main_thread())}


def make_instant(name: str, extras: Mapping[str, Any], max_turns: int | None) -> Instant:
    return Instant(extras)


def test_an_instant_env_is_called_in_the_event_loops_own_thread() -> None:
    async def use(host: EnvHost) -> list[float]:
        seen = []
        for _ in range(2):
            env = env_of(host)
            await env.init()
            seen.append((await env.step("1"))["reward"])
            seen.append((await env.finish())["in_main"])
        return seen

    assert hosting(use, make=make_instant) == [1, 1, 1, 1]


def test_an_instant_env_that_hangs_loses_its_trajectory_only_and_runs_in_processes_then() -> None:
    async def use(host: EnvHost) -> tuple[TrajectoryError, set[str]]:
        env = env_of(host)
        await env.init()
        with pytest.raises(TrajectoryError) as caught:
            await env.step("hang")
        await env.discard()
        return caught.value, host.in_processes

    error, in_processes = hosting(use, make=make_instant, timeout_s=0.2)
    assert error.kind is FailureKind.TIMEOUT
    assert "did not answer step within 0.2 s (environment.timeout_s)" in str(error)
    assert in_processes == {"scripted"}


def test_an_instant_env_that_raises_is_a_failure_of_the_task() -> None:
    async def use(host: EnvHost) -> TrajectoryError:
        env = env_of(host)
        await env.init()
        with pytest.raises(TrajectoryError) as caught:
            await env.step("fail")
        await env.discard()
        return caught.value

    error = hosting(use, make=make_instant)
    assert error.kind is FailureKind.TASK
    assert "failed in step: ValueError: no such answer" in str(error)


def test_without_a_main_thread_to_interrupt_an_instant_env_runs_in_worker_threads() -> None:
    async def use(host: EnvHost) -> set[str]:
        await episode(env_of(host))
        return host.instant

    found: list[set[str]] = []
    thread = threading.Thread(target=lambda: found.append(hosting(use, make=make_instant)))
    thread.start()
    thread.join()
    assert found == [set()]


def test_what_an_env_does_with_its_metadata_later_changes_no_turn() -> None:
    class Reuses(TextEnv):
        def __init__(self, extras: Mapping[str, Any]) -> None:
            super().__init__(extras)
            self.told: dict[str, Any] = {}

        def step(self, action: str) -> EnvStep:
            self.told["said"] = action
            return EnvStep(observations=[], reward=0.0, done=False, metadata=self.told)

    async def use(host: EnvHost) -> list[Any]:
        env = env_of(host)
        await env.init()
        return [(await env.step(action))["metadata"] for action in ("a", "b")]

    told = hosting(use, make=lambda name, extras, max_turns: Reuses(extras))
    assert told == [{"said": "a"}, {"said": "b"}]
