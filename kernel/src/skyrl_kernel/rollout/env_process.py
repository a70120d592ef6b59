"""Envs in processes that can be killed.

A child process serves one env at a time and is used again for the next; one
that overruns a deadline is killed and replaced.
"""

import asyncio
import collections
import contextlib
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from skyrl_kernel.env import Env
from skyrl_kernel.errors import TrajectoryError
from skyrl_kernel.rollout.deadline import CallTimeout

T = TypeVar("T")

IMPORT_S = 60.0
"""Seconds that a new process has for its imports, beside the deadline of its first call."""


class RemoteEnvError(Exception):
    """The env raised in its process, or the process died.

    Args:
        message: ``TypeName: message`` of the original, or how the process ended.
        died: True if the process is gone.
    """

    def __init__(self, message: str, died: bool) -> None:
        super().__init__(message, died)
        self.message = message
        self.died = died

    def __str__(self) -> str:
        return self.message


EnvFactory = Callable[[str, Mapping[str, Any], int | None], Env]
"""Picklable; (name, row's columns, cap on turns) → env."""


def _serve(connection: Connection, factory: EnvFactory) -> None:
    """Child's main loop: (method, args) in, (True, result) or (False, what was raised) out."""
    env: Any = None
    loop = asyncio.new_event_loop()  # one for all calls: what an async env opened stays usable
    while True:
        try:
            method, args = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if method == "open":
                env, result = factory(*args), None
            elif method == "close":
                result, env = (env.close() if env is not None else None), None
            else:
                result = getattr(env, method)(*args)
            if asyncio.iscoroutine(result):
                result = loop.run_until_complete(result)
            answer = (True, result)
        except TrajectoryError as error:
            answer = (False, error)
        except (Exception, SystemExit) as error:
            answer = (False, f"{type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except Exception as error:  # an unpicklable result
            connection.send((False, f"{type(error).__name__}: {error}"))


class _Child:
    """One process and our end of its pipe."""

    def __init__(self, factory: EnvFactory) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        """Blocking call, for a thread. Kills the process at the deadline."""
        try:
            self._connection.send((method, args))
            if not self._connection.poll(timeout_s):
                self.kill()
                raise CallTimeout(timeout_s)
            fine, result = self._connection.recv()
        except (EOFError, OSError) as error:
            self.kill()
            raise RemoteEnvError(
                f"its process ended with exit code {self._process.exitcode}", True
            ) from error
        if not fine:
            raise result if isinstance(result, TrajectoryError) else RemoteEnvError(result, False)
        return result

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.join(5)
        self._connection.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()


class ProcessEnv:
    """One env in a child process."""

    def __init__(self, pool: "EnvProcessPool", child: _Child, timeout_s: float) -> None:
        self._pool = pool
        self._child = child
        self._timeout_s = timeout_s

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the env.

        Raises:
            CallTimeout: No answer in time; the process is gone.
            RemoteEnvError: The env raised, or its process died.
            TrajectoryError: The env raised it.
        """
        return await self._pool.ask(self._child, method, args, self._timeout_s)

    async def close(self) -> None:
        """Close the env and give its process back; if that fails, end the process.

        Raises:
            CallTimeout: As in `call`.
            RemoteEnvError: As in `call`.
        """
        try:
            await self.call("close")
        except BaseException:
            self.kill()
            raise
        self._pool.give_back(self._child)

    def kill(self) -> None:
        """End the process, and the env with it."""
        self._pool.drop(self._child)


StepAside = Callable[[], Callable[[], None]]
"""Called before a wait for a process that others hold; what it returns is called at its end."""


def no_rounds() -> Callable[[], None]:
    """A `StepAside` for where nobody waits for anybody."""
    return _nothing


def _nothing() -> None: ...


class _Slots:
    """A semaphore whose waiters step aside: who has a slot may be waiting for all that have none."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: collections.deque[tuple[asyncio.Future[None], Callable[[], None]]] = (
            collections.deque()
        )

    async def acquire(self, step_aside: StepAside) -> None:
        """Wait for a slot."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, step_aside()))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Hand the slot to who waits longest; they come back at once, not when they next run."""
        while self._waiting:
            turn, come_back = self._waiting.popleft()
            if not turn.done():
                come_back()
                turn.set_result(None)
                return
        self._free += 1


class EnvProcessPool:
    """Child processes, started when first needed.

    Args:
        factory: Picklable function that makes an env by name in the child.
        size: Most processes at once.
    """

    def __init__(self, factory: EnvFactory, size: int) -> None:
        self._factory = factory
        self._slots = _Slots(size)
        self._threads = ThreadPoolExecutor(size, "skyrl-env-process")
        self._idle: list[_Child] = []
        self._used: set[_Child] = set()

    async def open(
        self,
        name: str,
        extras: Mapping[str, Any],
        max_turns: int | None,
        timeout_s: float,
        step_aside: StepAside = no_rounds,
    ) -> ProcessEnv:
        """An env in a process of its own; waits, aside, while all processes are in use."""
        await self._slots.acquire(step_aside)
        try:
            child = self._idle_child()
            if child is None:
                child = await self._in_thread(_Child, self._factory)
        except BaseException:
            self._slots.release()
            raise
        self._used.add(child)
        try:
            # The first call also waits for the child's imports, which are not the env's time.
            await self.ask(child, "open", (name, dict(extras), max_turns), timeout_s + IMPORT_S)
        except TrajectoryError:
            self.give_back(child)
            raise
        except RemoteEnvError as error:
            if error.died:
                self.drop(child)
            else:
                self.give_back(child)
            raise
        except BaseException:
            self.drop(child)
            raise
        return ProcessEnv(self, child, timeout_s)

    async def ask(self, child: _Child, method: str, args: tuple[Any, ...], timeout_s: float) -> Any:
        """One call in a child; see `ProcessEnv.call`."""
        return await self._in_thread(child.ask, method, args, timeout_s)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _idle_child(self) -> _Child | None:
        """A process that is free and, though nobody watched it, still there."""
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.kill()
        return None

    def give_back(self, child: _Child) -> None:
        """The process is free for another env."""
        self._used.discard(child)
        self._idle.append(child)
        self._slots.release()

    def drop(self, child: _Child) -> None:
        """The process is of no more use."""
        if child in self._used:
            self._used.discard(child)
            with contextlib.suppress(OSError, ValueError):
                child.kill()
            self._slots.release()

    async def close(self) -> None:
        """End all processes."""
        for child in [*self._idle, *self._used]:
            with contextlib.suppress(OSError, ValueError):
                child.kill()
        self._idle.clear()
        self._used.clear()
        self._threads.shutdown(wait=False)
