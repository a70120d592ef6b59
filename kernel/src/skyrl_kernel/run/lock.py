"""One process per run folder.

The lock is the operating system's (``flock``): it goes away with the process
that holds it, however that ends, so there is never a stale one to remove. The
file itself stays and says who holds it, or held it last.
"""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from skyrl_kernel.errors import ResumeError

LOCK_NAME = ".lock"


class FolderLock:
    """Holds a folder until `release`, or until this process ends.

    Forked children do not hold it: a worker that outlives a killed controller
    must not keep the folder busy.

    Args:
        folder: Made if missing.

    Raises:
        ResumeError: Another process, or another object of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._descriptor: int | None = None
        while self._descriptor is None:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(descriptor, self.path)
                # The folder may have been moved aside since it was opened.
                current = os.stat(self.path) if self.path.exists() else None
                if current is not None and os.path.samestat(os.fstat(descriptor), current):
                    self._descriptor, descriptor = descriptor, -1
            finally:
                if descriptor != -1:
                    os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, _signature().encode(), 0)
        held = weakref.ref(self)

        def close_in_child() -> None:
            if (lock := held()) is not None:
                lock.release()

        os.register_at_fork(after_in_child=close_in_child)

    def release(self) -> None:
        """Give the folder back; nothing happens if that was done before."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int, path: Path) -> None:
    """Take the lock or say who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace")
        raise ResumeError(
            f"run folder {path.parent} is in use by {_describe(holder)}; wait for it to end or "
            "stop it, or give this run another trainer.run_name"
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}:
            raise
        warnings.warn(
            f"the file system of {path.parent} has no locks: nothing keeps a second run out of "
            "this folder",
            RuntimeWarning,
            stacklevel=4,
        )


def _signature() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}) + "\n"


def _describe(signature: str) -> str:
    try:
        holder = json.loads(signature)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
