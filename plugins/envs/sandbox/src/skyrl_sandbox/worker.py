"""A child in the sandbox that stays and answers: JSON in, JSON out, a deadline for each call."""

import json
import os
import select
import threading
import time
from importlib import resources
from types import TracebackType
from typing import Any, Self

from skyrl_sandbox.launch import is_ready, sandbox_failed
from skyrl_sandbox.limits import Limit, Limits
from skyrl_sandbox.sandbox import Sandbox
from skyrl_sandbox.usage import Usage

_TICK_S = 0.05
_KEPT = 16384
"""Last bytes of standard error that are kept for messages."""
_PIECE = 65536


class WorkerError(RuntimeError):
    """The handler raised; the worker goes on.

    Args:
        message: ``TypeName: message`` of what it raised.
        trace: Its traceback, as text.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    def __str__(self) -> str:
        return self.message


class WorkerTimeout(TimeoutError):
    """The handler did not answer in time; the worker was killed."""


class WorkerDied(RuntimeError):
    """The worker ended by itself or exceeded a limit.

    Args:
        message: How it ended, with the last lines that it wrote.
        limit: The limit that it exceeded, or None.
    """

    def __init__(self, message: str, limit: Limit | None = None) -> None:
        super().__init__(message, limit)
        self.message = message
        self.limit = limit

    def __str__(self) -> str:
        return self.message


class Worker:
    """Calls one function inside the sandbox, again and again.

    The function takes and returns what JSON can hold. Module globals inside live as long
    as the worker. Calls are made one at a time; threads that call together wait for each
    other. After `WorkerTimeout` and `WorkerDied` the worker is gone: make another.

    Anything that runs inside can forge the function's answers: code of a model that the
    function runs in the same process, or in a child of it, included. Where a reward must
    be proof against that, judge outside, from a `Sandbox.run`.

    Args:
        sandbox: Its interpreter, readable folders and limits are the worker's. ``cpu_s``
            counts the worker's whole life; None lets it live.
        handler: ``module:function``, importable inside: see `Sandbox`'s ``python_path``.
        start_s: Seconds for its imports.

    Raises:
        WorkerError: The handler cannot be imported.
        WorkerTimeout: It was not ready after ``start_s``.
        TrajectoryError: The sandbox failed, of the kind infrastructure.

    Example:
        >>> with Worker(Sandbox(), "operator:length_hint") as worker:  # doctest: +SKIP
        ...     worker.call([1, 2, 3])
        3
    """

    def __init__(self, sandbox: Sandbox, handler: str, *, start_s: float = 60.0) -> None:
        self._limits: Limits = sandbox.limits
        self._lock = threading.Lock()
        self._number = 0
        self._pending = bytearray()
        self._stderr = bytearray()
        self._limit: Limit | None = None
        self._killed = threading.Event()
        program = resources.files("skyrl_sandbox").joinpath("serve.py").read_text()
        self._launched = sandbox.launch_python(program, [handler], sandbox.limits)
        process = self._launched.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        self._watcher = threading.Thread(
            target=self._watch, args=(process.stderr.fileno(),), name="skyrl-sandbox", daemon=True
        )
        self._watcher.start()
        try:
            self._answer(time.monotonic() + start_s, start_s)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """False once it has ended or was killed."""
        return not self._killed.is_set() and self._launched.process.poll() is None

    def call(self, request: Any, timeout_s: float | None = None) -> Any:
        """The handler's answer.

        Args:
            request: What JSON can hold.
            timeout_s: Deadline; default: the limit ``wall_s``.

        Raises:
            WorkerError: The handler raised.
            WorkerTimeout: No answer in time; the worker was killed.
            WorkerDied: It ended, or exceeded a limit.
        """
        timeout_s = self._limits.wall_s if timeout_s is None else timeout_s
        with self._lock:
            if not self.alive:
                raise self._death()
            self._number += 1
            line = json.dumps([self._number, request]).encode() + b"\n"
            deadline = time.monotonic() + timeout_s
            self._send(line, deadline, timeout_s)
            return self._answer(deadline, timeout_s)

    def kill(self) -> None:
        """End it now, whatever it does; a call in progress raises `WorkerDied`."""
        self._killed.set()
        self._launched.kill()

    def close(self) -> None:
        """End it and give back what it held."""
        self.kill()
        self._watcher.join()
        self._launched.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, line: bytes, deadline: float, timeout_s: float) -> None:
        left = memoryview(line)
        while left:
            self._wait(self._stdin, select.POLLOUT, deadline, timeout_s)
            try:
                left = left[os.write(self._stdin, left[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._death() from None

    def _answer(self, deadline: float, timeout_s: float) -> Any:
        while b"\n" not in self._pending:
            self._wait(self._stdout, select.POLLIN, deadline, timeout_s)
            data = os.read(self._stdout, _PIECE)
            if not data:
                raise self._death()
            self._pending += data
            if len(self._pending) > self._limits.output_kb * 1024:
                self._end(Limit.OUTPUT)
                raise self._death()
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending = bytearray(rest)
        try:
            number, answer, problem = json.loads(line)
            failure = None if problem is None else WorkerError(*map(str, problem))
        except (ValueError, TypeError, RecursionError) as error:
            self.kill()
            raise WorkerDied(f"its answer is none: {line[:80]!r}") from error
        if number != self._number:
            self.kill()
            raise WorkerDied(f"it answered request {number} instead of {self._number}")
        if failure is not None:
            raise failure
        return answer

    def _wait(self, number: int, event: int, deadline: float, timeout_s: float) -> None:
        if not is_ready(number, event, deadline):
            self.kill()
            raise WorkerTimeout(f"no answer within {timeout_s:g} s")

    def _end(self, limit: Limit) -> None:
        if self._limit is None and not self._killed.is_set():
            self._limit = limit
            self.kill()

    def _death(self) -> Exception:
        """What to say about its end."""
        was_killed = self._killed.is_set()
        self._killed.set()
        exit_code = self._launched.wait()
        self._watcher.join()
        said = self._stderr.decode("utf-8", "replace").strip()[-1000:]
        if self._limit is not None:
            return WorkerDied(f"it exceeded the limit '{self._limit}'", self._limit)
        if exit_code is None and not was_killed:
            return sandbox_failed(f"bubblewrap said: {said or 'nothing'}")
        how = "was killed" if was_killed else f"ended with exit code {exit_code}"
        return WorkerDied(f"it {how}; its last words: {said or 'none'}")

    def _watch(self, stderr: int) -> None:
        """In a thread of its own: read standard error, look after the limits."""
        init = self._launched.init
        usage = None if init is None else Usage(init, self._limits)
        is_open = True
        while self._launched.process.poll() is None or is_open:
            next_look = time.monotonic() + _TICK_S
            while is_open and is_ready(stderr, select.POLLIN, next_look):
                data = os.read(stderr, _PIECE)
                is_open = bool(data)
                self._stderr = (self._stderr + data)[-_KEPT:]
                if time.monotonic() >= next_look:
                    break
            if is_ready(self._launched.end_handle, select.POLLIN, next_look):
                continue
            limit = None if usage is None or self._killed.is_set() else usage.exceeded()
            if limit is not None:
                self._end(limit)
