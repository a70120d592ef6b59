"""Starts bubblewrap and tells how it ended: one process, its pipes, and its end.

A program that fails and a sandbox that fails are told apart by what bubblewrap writes to
a pipe of its own, which the program does not have: an exit code is there only if the
program had been started.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from skyrl_kernel.errors import FailureKind, TrajectoryError

_SETUP_S = 20.0
"""A sandbox is there within milliseconds, on a machine out of breath within seconds."""
_END_S = 20.0
"""Likewise for its end after a kill."""


class _Starter:
    """The one thread that starts processes.

    Bubblewrap ends with its parent, and to the kernel the parent is the thread that
    started it; threads of a pool come and go, this one stays.
    """

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._thread = ThreadPoolExecutor(1, "skyrl-sandbox-starter")

    def start(self, make: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
        return self._thread.submit(make).result()


_starter = _Starter()


class Launched:
    """One bubblewrap with a program inside.

    Args:
        command: Makes the words from the number of the status pipe and those of ``files``.
        files: Contents of the files that bubblewrap reads, by name.
    """

    def __init__(
        self, command: Callable[[int, dict[str, int]], list[str]], files: dict[str, bytes]
    ) -> None:
        self._status = b""
        self.init: int | None = None
        """Process id of the sandbox's first process; None if bubblewrap failed before it."""
        self._init_handle: int | None = None
        self.status_fd, theirs = os.pipe()
        open_files = {name: _file(name, data) for name, data in files.items()}
        try:
            words = command(theirs, open_files)
            self.process = _starter.start(
                lambda: subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs, *open_files.values()),
                    env={},  # its first process keeps it, where the program could read it
                    start_new_session=True,  # Ctrl-C ends the run, which then ends this
                    bufsize=0,
                )
            )
        except OSError as error:
            os.close(self.status_fd)
            raise sandbox_failed(f"bubblewrap cannot be started: {error}") from error
        finally:
            for number in (theirs, *open_files.values()):
                os.close(number)
        self.end_handle = os.pidfd_open(self.process.pid)
        """Readable once bubblewrap has ended."""
        self.init = self._told("child-pid", _SETUP_S)
        if self.init is not None:
            with contextlib.suppress(OSError):  # it may be gone already
                self._init_handle = os.pidfd_open(self.init)

    def _told(self, key: str, timeout_s: float) -> int | None:
        """A number that bubblewrap tells; None if it will not."""
        deadline = time.monotonic() + timeout_s
        while True:
            for line in self._status.splitlines():
                with contextlib.suppress(ValueError):  # a line that is not yet complete
                    told: dict[str, Any] = json.loads(line)
                    if key in told:
                        return int(told[key])
            if not is_ready(self.status_fd, select.POLLIN, deadline):
                return None
            data = os.read(self.status_fd, 4096)
            if not data:
                return None
            self._status += data

    def kill(self) -> None:
        """End every process of the sandbox."""
        if self._init_handle is None:
            self.process.kill()
            return
        with contextlib.suppress(OSError):  # with it end all others, and bubblewrap notices
            signal.pidfd_send_signal(self._init_handle, signal.SIGKILL)

    def wait(self, timeout_s: float = _END_S) -> int | None:
        """Exit code of the program, once all that it started is gone.

        Returns:
            None if it was never started. After `kill` it says nothing.

        Raises:
            TrajectoryError: Something does not end.
        """
        deadline = time.monotonic() + timeout_s
        for handle in (self.end_handle, self._init_handle):
            if handle is not None and not is_ready(handle, select.POLLIN, deadline):
                raise sandbox_failed(f"its processes did not end within {timeout_s:g} s")
        self.process.wait()
        if self.init is not None:
            # Bubblewrap does not wait for it, so it becomes a child of process 1 of the system. In
            # a container that may be this one, where nobody else would.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.init, os.WNOHANG)
        return self._told("exit-code", 1.0)

    def close(self) -> None:
        """End what is left, and give back all that was opened."""
        if self.process.returncode is None:
            self.kill()
            with contextlib.suppress(TrajectoryError):
                self.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        os.close(self.end_handle)
        os.close(self.status_fd)
        if self._init_handle is not None:
            os.close(self._init_handle)


def is_ready(number: int, event: int, deadline: float) -> bool:
    """Wait until a file can be read or written, or until the deadline.

    Not by ``select.select``, which takes no number above 1023.

    Args:
        number: The file.
        event: ``select.POLLIN`` or ``select.POLLOUT``.
        deadline: Of `time.monotonic`.
    """
    poll = select.poll()
    poll.register(number, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def sandbox_failed(what: str) -> TrajectoryError:
    """The failure of a sandbox, which says nothing about the program in it."""
    return TrajectoryError(FailureKind.INFRASTRUCTURE, f"the sandbox failed: {what}")


def _file(name: str, data: bytes) -> int:
    number = os.memfd_create(name)
    with open(number, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(number, 0, os.SEEK_SET)
    return number
