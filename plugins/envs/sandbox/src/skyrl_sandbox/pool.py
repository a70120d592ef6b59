"""Workers that are lent out one call at a time, so that a start is not paid for each episode."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from skyrl_sandbox.sandbox import Sandbox
from skyrl_sandbox.worker import Worker, WorkerError


class WorkerPool:
    """As many equal workers as there are calls at the same time.

    A call goes to a worker that is free, or to a new one. One that hung, died or exceeded a
    limit is not used again. Calls of different episodes share workers: use it only for a
    handler on which a call leaves no trace, and not to run programs.

    Args:
        sandbox: As for `Worker`.
        handler: As for `Worker`.

    Example:
        >>> with WorkerPool(Sandbox(), "operator:length_hint") as pool:  # doctest: +SKIP
        ...     pool.call([1, 2, 3])
        3
    """

    def __init__(self, sandbox: Sandbox, handler: str) -> None:
        self._sandbox = sandbox
        self._handler = handler
        self._lock = threading.Lock()
        self._free: list[Worker] = []
        self._owner = os.getpid()

    def call(self, request: Any, timeout_s: float | None = None) -> Any:
        """See `Worker.call`, whose errors this raises."""
        with self.lent() as worker:
            return worker.call(request, timeout_s)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Worker]:
        """A worker for several calls, of which later ones may use what earlier ones left."""
        worker = self._borrow()
        try:
            yield worker
        except WorkerError:
            self._give_back(worker)
            raise
        except BaseException:
            worker.close()
            raise
        self._give_back(worker)

    def close(self) -> None:
        """End the workers that are free; the pool stays usable."""
        with self._lock:
            free, self._free = self._free, []
        for worker in free:
            worker.close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _borrow(self) -> Worker:
        while True:
            with self._lock:
                if self._owner != os.getpid():  # a fork has copied the list, not the workers
                    self._owner, self._free = os.getpid(), []
                worker = self._free.pop() if self._free else None
            if worker is None:
                return Worker(self._sandbox, self._handler)
            if worker.alive:
                return worker
            worker.close()

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            self._free.append(worker)
