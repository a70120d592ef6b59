"""Calls made where they stand, under a deadline all the same: for envs that answer in microseconds.

A trip to a worker thread and back costs many times what such an env computes.
Here it is called in the event loop's own thread. A watcher looks from outside
whether a call is past its deadline; a signal then makes Python raise inside it.
That stops Python code and what waits for the operating system. It does not stop
a C function that never returns to Python: an env that calls such a one is not
instant, and may ask for a process.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, TypeVarTuple

from skyrl_kernel.rollout.deadline import CallTimeout, contained

Args = TypeVarTuple("Args")
T = TypeVar("T")

_SIGNAL: int | None = getattr(signal, "SIGRTMIN", getattr(signal, "SIGUSR2", None))


class _Late(BaseException):
    """Raised in a late call; no `Exception`, so that what is called does not take it for its own."""


class InPlace:
    """Calls functions in the main thread, one at a time.

    Args:
        timeout_s: The usual deadline. How soon after its own a call is ended depends on it:
            after a quarter of it, and after a second at most.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        """Of the call that runs, on the monotonic clock."""
        self._call_timeout_s = 0.0
        self._watcher: threading.Thread | None = None
        self._is_closed = threading.Event()
        self._handler_before: Any = None

    @staticmethod
    def is_possible() -> bool:
        """True in the main thread of a system that can signal it: only there can a call be ended."""
        return (
            _SIGNAL is not None
            and hasattr(signal, "pthread_kill")
            and threading.current_thread() is threading.main_thread()
        )

    def call(self, timeout_s: float, function: Callable[[*Args], T], *args: *Args) -> T:
        """What the function returns.

        Raises:
            CallTimeout: It was still running at its deadline, and was ended.
            Exception: What it raised; what would end the event loop is `contained`.
        """
        if self._watcher is None:
            self._watch()
        try:
            self._call_timeout_s = timeout_s
            self._deadline = time.monotonic() + timeout_s
            try:
                return function(*args)
            finally:
                self._deadline = None
        except (_Late, KeyboardInterrupt) as ended:
            self._deadline = None
            if isinstance(ended, _Late):
                raise CallTimeout(timeout_s) from None
            raise
        except Exception:
            raise
        except BaseException as error:
            raise contained(error) from error

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed.set()
        if self._watcher is not None and _SIGNAL is not None:
            self._watcher.join()
            if signal.getsignal(_SIGNAL) == self._end_late_call and self.is_possible():
                signal.signal(_SIGNAL, self._handler_before)

    def _watch(self) -> None:
        assert _SIGNAL is not None, "is_possible said so"
        self._handler_before = signal.signal(_SIGNAL, self._end_late_call)
        self._watcher = threading.Thread(
            target=self._look, args=(_SIGNAL,), name="skyrl-in-place", daemon=True
        )
        self._watcher.start()

    def _look(self, number: int) -> None:
        """In the watcher's thread."""
        main = threading.main_thread().ident
        assert main is not None, "it runs"
        period_s = min(max(self._timeout_s / 4, 0.01), 1.0)
        while not self._is_closed.wait(period_s):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                signal.pthread_kill(main, number)

    def _end_late_call(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between two steps of whatever it does."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._deadline += self._call_timeout_s  # for code that swallows the exception
            raise _Late
