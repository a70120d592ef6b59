"""Threads for calls that may hang: a deadline counts from when the call begins to run.

`concurrent.futures` cannot give up on a running call and wakes the event loop
once per result; here a hung thread is abandoned and replaced, and results that
are ready together cost one wake-up.
"""

import asyncio
import collections
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class CallTimeout(Exception):
    """A call was still running at its deadline; its thread is abandoned."""


@dataclass(eq=False, slots=True)
class _Call:
    function: Callable[[], Any]
    future: "asyncio.Future[Any]"
    timeout_s: float
    started: float | None = None
    abandoned: bool = False


@dataclass(eq=False)
class _Done:
    """Results on their way to the event loop."""

    ready: collections.deque[tuple[_Call, Any, BaseException | None]] = field(
        default_factory=collections.deque
    )
    scheduled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Workers:
    """Runs functions in up to ``size`` daemon threads.

    Args:
        size: Most calls at once; hung ones not counted.
        name: Names the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads = 0
        self._pending = 0
        self._running: set[_Call] = set()
        self._done = _Done()
        self._watch: asyncio.TimerHandle | None = None

    async def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Run ``function`` in a thread and wait for it.

        Args:
            function: Takes nothing; its result or exception is passed on.
            timeout_s: Seconds it may run, its time in the queue not counted.

        Raises:
            CallTimeout: It was still running then.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop.create_future(), timeout_s)
        self._pending += 1
        self._running.add(call)
        if self._threads < min(self._size, self._pending):
            self._threads += 1
            threading.Thread(target=self._work, args=(loop,), name=self._name, daemon=True).start()
        self._queue.put(call)
        if self._watch is None:
            self._watch = loop.call_later(min(timeout_s, 1.0), self._check, loop)
        return await call.future

    def close(self) -> None:
        """Let idle threads end; hung ones die with the process."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (call := self._queue.get()) is not None:
            call.started = time.monotonic()
            result: Any = None
            error: BaseException | None = None
            try:
                result = call.function()
            except BaseException as raised:  # passed on to whoever awaits the call
                error = raised
            if call.abandoned:
                return  # a replacement took this thread's place
            done = self._done
            done.ready.append((call, result, error))
            with done.lock:
                wake = not done.scheduled
                done.scheduled = True
            if wake:
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop has ended; nobody waits any more

    def _deliver(self) -> None:
        with self._done.lock:
            self._done.scheduled = False
        while self._done.ready:
            call, result, error = self._done.ready.popleft()
            if call not in self._running:
                continue
            self._running.discard(call)
            self._pending -= 1
            if call.future.done():
                continue
            if error is None:
                call.future.set_result(result)
            else:
                call.future.set_exception(error)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up on calls past their deadline; look again while any runs."""
        now = time.monotonic()
        next_s = 1.0
        for call in list(self._running):
            if call.started is None:
                continue
            left = call.started + call.timeout_s - now
            if left > 0:
                next_s = min(next_s, left)
                continue
            call.abandoned = True
            self._threads -= 1  # its thread is lost; the next call starts another
            self._running.discard(call)
            self._pending -= 1
            if not call.future.done():
                call.future.set_exception(CallTimeout(f"no answer within {call.timeout_s:g} s"))
            if self._pending > self._threads:
                self._threads += 1
                threading.Thread(
                    target=self._work, args=(loop,), name=self._name, daemon=True
                ).start()
        self._watch = (
            loop.call_later(max(next_s, 0.01), self._check, loop) if self._running else None
        )
