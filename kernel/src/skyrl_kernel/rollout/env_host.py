"""Envs under deadlines: async methods, checked results, typed errors, processes for those that hang.

A `HostedEnv` has an env's methods, all async. Whatever the env does wrong comes
out as a `TrajectoryError` of the right kind, never as a reward of 0.
"""

import asyncio
import contextlib
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple

from skyrl_kernel.env import Env, EnvStep
from skyrl_kernel.errors import FailureKind, PluginError, TrajectoryError
from skyrl_kernel.protocols import HostedEnv
from skyrl_kernel.records import Message, Prompt
from skyrl_kernel.rollout.deadline import CallTimeout, within
from skyrl_kernel.rollout.env_checks import BadResult, check_metrics, check_prompt, check_step
from skyrl_kernel.rollout.env_process import (
    EnvProcessPool,
    ProcessEnv,
    RemoteEnvError,
    StepAside,
    no_rounds,
)
from skyrl_kernel.rollout.in_place import InPlace
from skyrl_kernel.rollout.workers import Workers

Args = TypeVarTuple("Args")
T = TypeVar("T")

_ANSWERS = frozenset({dict, list, tuple, type(None)})
"""What envs mostly return: nothing to await."""

_UNCHANGEABLE = frozenset({str, int, float, bool, type(None)})

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
        self.in_place = InPlace(timeout_s)
        self.instant: set[str] = set()
        """Env names of which an instance says that it answers at once; they need no thread."""
        self.in_processes: set[str] = set()
        """Env names of which an instance has hung; from then on they run in processes."""

    def host(self, prompt: Prompt, step_aside: StepAside = no_rounds) -> HostedEnv:
        """A hosted env for one trajectory; nothing is made before its ``init``.

        Args:
            prompt: Names the env and has its columns.
            step_aside: Called if it must wait for another trajectory's process.
        """
        return _Hosted(self, prompt, step_aside)

    async def close(self) -> None:
        """End all processes and idle threads."""
        self.in_place.close()
        self.workers.close()
        await self.processes.close()


class _Hosted:
    __slots__ = (
        "_doing",
        "_env",
        "_host",
        "_is_broken",
        "_is_instant",
        "_name",
        "_prompt",
        "_step_aside",
    )

    def __init__(self, host: EnvHost, prompt: Prompt, step_aside: StepAside) -> None:
        self._host = host
        self._prompt = prompt
        self._step_aside = step_aside
        self._name = prompt.env_class
        self._env: Env | ProcessEnv | None = None
        self._is_instant = prompt.env_class in host.instant
        """It is called where its caller stands; the short way through each method below."""
        self._doing = "init"
        """The method that runs, or ran last; named if it fails."""
        self._is_broken = False
        """A call of it may still be running: nobody may touch it any more."""

    async def init(self) -> Sequence[Message]:
        messages = [dict(message) for message in self._prompt.messages]
        if self._name in self._host.in_processes:
            result = await self._init_in_process(messages)
        elif self._is_instant:
            result = self._call_here(self._make_and_init, messages)
            if type(result) not in _ANSWERS:
                result = await self._awaited(result)
        else:
            result = await self._call_it(lambda: self._make_and_init(messages))
        if self._env is None:  # it asked for a process
            result = await self._init_in_process(messages)
        elif not self._is_instant and getattr(self._env, "instant", False):
            self._settle_instant()
        return self._checked("init", check_prompt, result)

    def _settle_instant(self) -> None:
        """Where it can be: from now on, also for others of its name."""
        if InPlace.is_possible() and not isinstance(self._env, ProcessEnv):
            self._is_instant = True
            self._host.instant.add(self._name)

    def _make_and_init(self, messages: Sequence[Message]) -> Any:
        """One trip to a thread makes the env and calls it."""
        env = self._host.make(self._name, self._extras(), self._host.max_turns)
        if getattr(env, "isolate", False):
            return None
        self._env = env
        return env.init(messages)

    async def _init_in_process(self, messages: Sequence[Message]) -> Any:
        host = self._host
        self._is_instant = False
        opening = host.processes.open(
            self._name, self._extras(), host.max_turns, host.timeout_s, self._step_aside
        )
        env = self._env = await self._guard(opening)
        return await self._guard(env.call("init", messages))

    def _extras(self) -> dict[str, Any]:
        return _copied_items(self._prompt.extras)

    async def step(self, action: str) -> EnvStep:
        if self._is_instant:
            env = self._env
            assert env is not None, "init comes first"
            self._doing = "step"
            result = self._call_here(env.step, action)  # type: ignore[union-attr]
            if type(result) not in _ANSWERS:
                result = await self._awaited(result)
        else:
            result = await self._call("step", action)
        return self._checked("step", check_step, result)

    async def finish(self) -> Mapping[str, float]:
        env = self._env
        assert env is not None, "init comes first"
        kind: Any = type(env)
        if isinstance(env, ProcessEnv) or _ends_async(kind):
            metrics = await self._call("get_metrics")
            self._env, self._doing = None, "close"  # closed once, whether that works or not
            if isinstance(env, ProcessEnv):
                await self._guard(env.close())
            else:
                await self._call_it(env.close)
        elif self._is_instant:
            metrics = self._call_here(self._measure_and_close, env)
        else:
            metrics = await self._call_it(lambda: self._measure_and_close(env))
        return self._checked("get_metrics", check_metrics, metrics)

    def _measure_and_close(self, env: Env) -> Any:
        """One trip to a thread instead of two."""
        self._doing = "get_metrics"
        metrics = env.get_metrics()
        self._env, self._doing = None, "close"
        env.close()
        return metrics

    async def discard(self) -> None:
        env, self._env = self._env, None
        with contextlib.suppress(Exception):  # the failure that led here is the one to report
            if isinstance(env, ProcessEnv):
                if self._is_broken:
                    env.kill()
                else:
                    await env.close()
            elif env is not None and not self._is_broken:
                await self._call_it(env.close)

    async def _call(self, method: str, *args: Any) -> Any:
        env = self._env
        assert env is not None, "init comes first"
        self._doing = method
        if isinstance(env, ProcessEnv):
            return await self._guard(env.call(method, *args))
        if _is_async(type(env), method):
            awaitable = getattr(env, method)(*args)
            return await self._guard(within(awaitable, self._host.timeout_s))
        return await self._call_it(lambda: getattr(env, method)(*args))

    async def _call_it(self, function: Callable[[], Any]) -> Any:
        """Call in place or in a worker thread; await what comes out, if it can be awaited."""
        if self._is_instant:
            result = self._call_here(function)
        else:
            result = await self._guard(self._host.workers.submit(function, self._host.timeout_s))
        return result if type(result) in _ANSWERS else await self._awaited(result)

    def _call_here(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Call in place; type whatever goes wrong."""
        host = self._host
        try:
            return host.in_place.call(host.timeout_s, function, *args)
        except BaseException as error:
            self._type(error)
            raise

    async def _awaited(self, result: Any) -> Any:
        """What the call returned, or what comes of that if it can be awaited."""
        if inspect.isawaitable(result):
            return await self._guard(within(result, self._host.timeout_s))
        return result

    async def _guard(self, call: Awaitable[T]) -> T:
        """Await the call; type whatever goes wrong."""
        try:
            return await call
        except BaseException as error:
            self._type(error)
            raise

    def _type(self, error: BaseException) -> None:
        """Raise what the call raised as a `TrajectoryError`; return if it shall pass as it is."""
        if isinstance(error, asyncio.CancelledError):
            self._is_broken = True
        elif isinstance(error, CallTimeout):
            self._is_broken = True
            self._host.in_processes.add(self._name)
            raise self._lost(
                FailureKind.TIMEOUT,
                f"did not answer {self._doing} within {self._host.timeout_s:g} s "
                "(environment.timeout_s)",
            ) from error
        elif isinstance(error, RemoteEnvError):
            self._is_broken = error.died
            kind = FailureKind.INFRASTRUCTURE if error.died else FailureKind.TASK
            raise self._lost(kind, f"failed in {self._doing}: {error}") from error
        elif isinstance(error, TrajectoryError):  # the env itself says what failed
            raise self._lost(error.kind, f"failed in {self._doing}: {error}") from error
        elif isinstance(error, Exception):
            cause = error.cause if isinstance(error, PluginError) else _described(error)
            raise self._lost(FailureKind.TASK, f"failed in {self._doing}: {cause}") from error

    def _checked(self, method: str, check: Callable[[Any], T], result: Any) -> T:
        try:
            return check(result)
        except BadResult as error:
            raise self._lost(FailureKind.TASK, f"broke its contract: {method} {error}") from error

    def _lost(self, kind: FailureKind, what: str) -> TrajectoryError:
        return TrajectoryError(kind, f"env '{self._name}' {what}", self._name)


@functools.lru_cache(maxsize=256)
def _is_async(env: type[object], method: str) -> bool:
    """Whether to await it here instead of calling it in a thread."""
    return inspect.iscoroutinefunction(getattr(env, method, None))


@functools.lru_cache(maxsize=256)
def _ends_async(env: type[object]) -> bool:
    """Whether the two calls that end an episode must be awaited."""
    methods = [getattr(env, name, None) for name in ("get_metrics", "close")]
    return any(map(inspect.iscoroutinefunction, methods))


def _copied_items(values: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy; quick for what a data file holds."""
    copied = dict(values)
    for key, value in copied.items():
        kind = type(value)
        if kind not in _UNCHANGEABLE:
            copied[key] = _copied_items(value) if kind is dict else _copied(value)
    return copied


def _copied(value: Any) -> Any:
    """The same of any value."""
    if type(value) in _UNCHANGEABLE:
        return value
    if type(value) is dict:
        return _copied_items(value)
    if type(value) is list:
        return [_copied(item) for item in value]
    return copy.deepcopy(value)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
