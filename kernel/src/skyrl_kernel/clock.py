"""Seconds by name."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Adds up wall time per name.

    Example:
        >>> clock = Clock()
        >>> with clock("step"):
        ...     pass
        >>> list(clock.seconds)
        ['step']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block, also if it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
