"""Threads for calls that may hang: a deadline counts from when the call begins to run.

`concurrent.futures` cannot give up on a running call, and wakes a thread for
each call and the event loop for each result. A round of rollouts brings
hundreds of calls at once, most of microseconds: here one thread is woken for
all of them and more only if it does not get through, and results that are ready
together are handed over together. A hung thread is abandoned and replaced.
"""

import asyncio
import collections
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skyrl_kernel.rollout.deadline import CallTimeout, contained

_PATIENCE_S = 0.002
"""Calls that wait longer than this get another thread."""
_HAND_OVER_S = 0.005
"""Results wait at most this long for others to be handed over with."""


@dataclass(eq=False, slots=True)
class _Call:
    function: Callable[[], Any]
    future: "asyncio.Future[Any]"
    timeout_s: float
    started: float | None = None
    abandoned: bool = False
    result: Any = None
    error: Exception | None = None


class Workers:
    """Runs functions in up to ``size`` daemon threads, for one event loop at a time.

    Args:
        size: Most calls at once; hung ones not counted.
        name: Names the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._waiting: collections.deque[_Call] = collections.deque()
        self._ready: collections.deque[_Call] = collections.deque()
        self._running: set[_Call] = set()
        """Calls whose result the loop has not seen, those in `_waiting` too."""
        self._wake = threading.Semaphore(0)
        self._threads = 0
        self._woken = 0
        """Threads that were woken and have not gone back to sleep."""
        self._lock = threading.Lock()
        self._is_closed = False
        self._flush: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Run ``function`` in a thread and wait for it: `submit`, awaited."""
        return await self.submit(function, timeout_s)

    def submit(self, function: Callable[[], Any], timeout_s: float) -> "asyncio.Future[Any]":
        """Run ``function`` in a thread; the future has what comes of it.

        Args:
            function: Takes nothing; its result or exception is passed on.
            timeout_s: Seconds it may run, its time in the queue not counted.

        Returns:
            Of the running loop. It raises `CallTimeout` if the call was still
            running at its deadline; its thread is abandoned then.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, loop.create_future(), timeout_s)
        self._running.add(call)
        self._waiting.append(call)
        if self._flush is None:
            self._flush = loop.call_soon(self._wake_first, loop)
        return call.future

    def close(self) -> None:
        """Let idle threads end; hung ones die with the process."""
        for handle in (self._flush, self._watch):
            if handle is not None:
                handle.cancel()
        self._flush = self._watch = None
        self._is_closed = True
        for _ in range(self._threads):
            self._wake.release()

    # --- in the event loop ------------------------------------------------------------

    def _wake_first(self, loop: asyncio.AbstractEventLoop) -> None:
        """After all tasks of this round have queued their calls: wake one thread for them."""
        self._flush = None
        if self._woken == 0:
            self._wake_one(loop)
        if self._watch is None:
            self._watch = loop.call_later(_PATIENCE_S, self._check, loop)

    def _wake_one(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            idle = self._threads - self._woken
            if not idle:
                if self._threads >= self._size:
                    return
                self._threads += 1
                threading.Thread(
                    target=self._work, args=(loop,), name=self._name, daemon=True
                ).start()
            self._woken += 1
        self._wake.release()

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up on calls past their deadline; wake more threads for calls that wait."""
        now = time.monotonic()
        next_s = 1.0
        for call in list(self._running):
            if call.started is None:
                continue
            left = call.started + call.timeout_s - now
            if left > 0 or call in self._ready:
                next_s = min(next_s, max(left, 0.0))
                continue
            call.abandoned = True
            self._running.discard(call)
            with self._lock:  # its thread is lost; another may take its place
                self._threads -= 1
                self._woken -= 1
            if not call.future.done():
                call.future.set_exception(CallTimeout(call.timeout_s))
        if self._waiting:
            next_s = _PATIENCE_S
            for _ in range(max(1, self._woken)):  # twice as many each time
                self._wake_one(loop)
        self._watch = (
            loop.call_later(max(next_s, _PATIENCE_S), self._check, loop) if self._running else None
        )

    def _hand_over(self) -> None:
        while self._ready:
            call = self._ready.popleft()
            self._running.discard(call)
            if call.abandoned or call.future.done():
                continue
            if call.error is None:
                call.future.set_result(call.result)
            else:
                call.future.set_exception(call.error)

    # --- in a thread ------------------------------------------------------------------

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            self._wake.acquire()
            if self._is_closed:
                return
            if not self._work_off(loop):
                return
            with self._lock:
                self._woken -= 1
            if self._waiting:  # queued between the last look and going to sleep
                with self._lock:
                    self._woken += 1
                self._wake.release()

    def _work_off(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run what waits; False if this thread was abandoned or the loop has ended."""
        handed_over = time.monotonic()
        has_results = False
        while True:
            try:
                call = self._waiting.popleft()
            except IndexError:
                return self._tell(loop) if has_results else True
            call.started = time.monotonic()
            try:
                call.result = call.function()
            except BaseException as raised:  # passed on to whoever awaits the call
                call.error = contained(raised)
            if call.abandoned:
                return False
            self._ready.append(call)
            has_results = True
            now = time.monotonic()
            if now - handed_over > _HAND_OVER_S:
                if not self._tell(loop):
                    return False
                handed_over, has_results = now, False

    def _tell(self, loop: asyncio.AbstractEventLoop) -> bool:
        try:
            loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:
            return False  # the loop has ended; nobody waits any more
        return True
