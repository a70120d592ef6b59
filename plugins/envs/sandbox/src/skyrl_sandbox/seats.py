"""As many programs at a time as there are processors, so that each has one.

A run calls dozens of envs at once. If all their programs ran together on a few
processors, a program that is fast enough would miss its deadline on the clock because
of its neighbours, and be judged as too slow.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from skyrl_sandbox.launch import sandbox_failed

_free: threading.Semaphore


def _renew() -> None:
    global _free
    _free = threading.Semaphore(len(os.sched_getaffinity(0)))


_renew()
os.register_at_fork(after_in_child=_renew)


@contextlib.contextmanager
def seat(timeout_s: float) -> Iterator[float]:
    """Hold one of this process's seats, of which there are as many as processors.

    Args:
        timeout_s: How long to wait for one.

    Yields:
        Seconds that were waited.

    Raises:
        TrajectoryError: None was free in time, of the kind infrastructure: the program that
            was to run is not to blame.

    Example:
        >>> with seat(1.0) as waited_s:
        ...     waited_s < 1.0
        True
    """
    began = time.monotonic()
    if not _free.acquire(timeout=timeout_s):
        raise sandbox_failed(
            f"no processor was free within {timeout_s:g} s for a program to run on; "
            "lower environment.max_env_workers or raise environment.timeout_s"
        )
    try:
        yield time.monotonic() - began
    finally:
        _free.release()
