"""Envs under deadlines: async methods, checked results, typed errors, processes for those that hang.

A `HostedEnv` has an env's methods, all async. Whatever the env does wrong comes
out as a `TrajectoryError` of the right kind, never as a reward of 0.
"""

import asyncio
import contextlib
import copy
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from skyrl_kernel.env import Env, EnvStep
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.protocols import HostedEnv
from skyrl_kernel.records import Message, Prompt
from skyrl_kernel.rollout.env_process import EnvProcessPool, ProcessEnv, RemoteEnvError
from skyrl_kernel.rollout.workers import CallTimeout, Workers

MakeEnv = Callable[[str, Mapping[str, Any], int | None], Env]
"""(name, row's columns, cap on turns) → a fresh env."""


class EnvHost:
    """Makes hosted envs.

    Args:
        make: Makes a plain env.
        processes: Where envs run that ask for a process, or whose class has hung.
        timeout_s: Deadline of each call.
        workers: Threads for synchronous envs.
        max_turns: ``generator.max_turns``.
    """

    def __init__(
        self,
        make: MakeEnv,
        processes: EnvProcessPool,
        *,
        timeout_s: float,
        workers: int,
        max_turns: int | None,
    ) -> None:
        self.make = make
        self.processes = processes
        self.timeout_s = timeout_s
        self.max_turns = max_turns
        self.workers = Workers(workers, "skyrl-env")
        self.hung: set[str] = set()
        """Env names of which an instance has hung; from then on they run in processes."""

    def host(self, prompt: Prompt) -> HostedEnv:
        """A hosted env for one trajectory; nothing is made before its ``init``."""
        return _Hosted(self, prompt)

    async def close(self) -> None:
        """End all processes and idle threads."""
        self.workers.close()
        await self.processes.close()


class _Hosted:
    def __init__(self, host: EnvHost, prompt: Prompt) -> None:
        self._host = host
        self._prompt = prompt
        self._name = prompt.env_class
        self._env: Env | ProcessEnv | None = None
        self._broken = False

    async def init(self) -> Sequence[Message]:
        extras = copy.deepcopy(dict(self._prompt.extras))
        messages = [dict(message) for message in self._prompt.messages]
        host = self._host

        def make() -> tuple[Env, Any]:
            env = host.make(self._name, extras, host.max_turns)
            if getattr(env, "isolate", False):
                return env, None
            self._env = env
            return env, env.init(messages)

        isolated = self._name in host.hung
        result: Any = None
        if not isolated:
            env, result = await self._guard("init", lambda: host.workers.call(make, host.timeout_s))
            isolated = bool(getattr(env, "isolate", False))
        if isolated:
            self._env = await self._guard(
                "init",
                lambda: host.processes.open(self._name, extras, host.max_turns, host.timeout_s),
            )
            process_env = self._env
            assert isinstance(process_env, ProcessEnv)
            result = await self._guard("init", lambda: process_env.call("init", messages))
        elif inspect.isawaitable(result):
            awaitable = result
            result = await self._guard("init", lambda: asyncio.wait_for(awaitable, host.timeout_s))
        return self._checked_prompt(result)

    async def step(self, action: str) -> EnvStep:
        return self._checked_step(await self._call("step", action))

    async def finish(self) -> Mapping[str, float]:
        env = self._env
        if isinstance(env, ProcessEnv):
            metrics = await self._call("get_metrics")
            self._env = None
            await env.release(kill=False)
        elif _is_async(env, "get_metrics") or _is_async(env, "close"):
            metrics = await self._call("get_metrics")
            await self._call("close")
        else:  # one trip to a thread instead of two
            assert env is not None
            metrics = await self._guard(
                "get_metrics",
                lambda: self._host.workers.call(lambda: _finish(env), self._host.timeout_s),
            )
        self._env = None
        if not isinstance(metrics, Mapping):
            raise self._bad(
                "get_metrics", f"returned {_describe(metrics)}; it must be a mapping of numbers"
            )
        return {
            str(key): float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }

    async def discard(self) -> None:
        env, self._env = self._env, None
        with contextlib.suppress(Exception):  # the failure that led here is the one to report
            if isinstance(env, ProcessEnv):
                await env.release(kill=self._broken)
            elif env is not None and not self._broken:  # a broken one hangs in its thread
                result = await self._host.workers.call(env.close, self._host.timeout_s)
                if inspect.isawaitable(result):
                    await asyncio.wait_for(result, self._host.timeout_s)

    async def _call(self, method: str, *args: Any) -> Any:
        env = self._env
        assert env is not None, "init comes first"
        if isinstance(env, ProcessEnv):
            return await self._guard(method, lambda: env.call(method, *args))
        bound = getattr(env, method, None)
        if bound is None:
            raise self._bad(method, "is missing; an env has init, step, close and get_metrics")
        timeout_s = self._host.timeout_s
        if inspect.iscoroutinefunction(bound):
            return await self._guard(method, lambda: asyncio.wait_for(bound(*args), timeout_s))
        result = await self._guard(
            method, lambda: self._host.workers.call(lambda: bound(*args), timeout_s)
        )
        if inspect.isawaitable(result):
            result = await self._guard(method, lambda: asyncio.wait_for(result, timeout_s))
        return result

    async def _guard(self, method: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await the call; type whatever goes wrong."""
        try:
            return await call()
        except (CallTimeout, TimeoutError) as error:
            self._broken = True
            self._host.hung.add(self._name)
            raise TrajectoryError(
                FailureKind.TIMEOUT,
                f"env '{self._name}' did not answer {method} within {self._host.timeout_s:g} s "
                "(environment.timeout_s)",
                self._name,
            ) from error
        except RemoteEnvError as error:
            kind = FailureKind.INFRASTRUCTURE if error.died else FailureKind.TASK
            self._broken = error.died
            raise TrajectoryError(
                kind, f"env '{self._name}' failed in {method}: {error}", self._name
            ) from error
        except TrajectoryError:
            raise
        except Exception as error:
            raise TrajectoryError(
                FailureKind.TASK,
                f"env '{self._name}' failed in {method}: {_describe_error(error)}",
                self._name,
            ) from error

    def _bad(self, method: str, what: str) -> TrajectoryError:
        return TrajectoryError(FailureKind.TASK, f"env '{self._name}': {method} {what}", self._name)

    def _checked_prompt(self, result: Any) -> Sequence[Message]:
        if not (isinstance(result, (tuple, list)) and len(result) == 2):
            raise self._bad(
                "init", f"returned {_describe(result)}; it must return (prompt, information)"
            )
        messages = result[0]
        if not _are_messages(messages) or not messages:
            raise self._bad(
                "init", f"returned the prompt {_describe(messages)}; it must be chat messages"
            )
        checked: Sequence[Message] = messages
        return checked

    def _checked_step(self, result: Any) -> EnvStep:
        if not isinstance(result, Mapping):
            raise self._bad(
                "step", f"returned {_describe(result)}; it must return a mapping as EnvStep"
            )
        missing = [key for key in ("observations", "reward", "done") if key not in result]
        if missing:
            raise self._bad(
                "step", f"returned no {', '.join(missing)}; it returned: {', '.join(result)}"
            )
        reward = result["reward"]
        if isinstance(reward, bool) or not isinstance(reward, (int, float)):
            raise self._bad("step", f"returned the reward {_describe(reward)}; it must be a number")
        if not math.isfinite(reward):
            raise self._bad("step", f"returned the reward {reward}; it must be finite")
        if not isinstance(result["done"], bool):
            raise self._bad(
                "step", f"returned done={_describe(result['done'])}; it must be True or False"
            )
        observations = result["observations"] or []
        if not _are_messages(observations):
            raise self._bad(
                "step",
                f"returned observations {_describe(observations)}; they must be chat messages",
            )
        return EnvStep(
            observations=observations,
            reward=float(reward),
            done=result["done"],
            metadata=dict(result.get("metadata") or {}),
            postprocessed_action=result.get("postprocessed_action"),
        )


def _finish(env: Env) -> Any:
    try:
        return env.get_metrics()
    finally:
        env.close()


def _is_async(env: Any, method: str) -> bool:
    return inspect.iscoroutinefunction(getattr(env, method, None))


def _are_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(one, Mapping)
        and isinstance(one.get("role"), str)
        and isinstance(one.get("content"), str)
        for one in value
    )


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
