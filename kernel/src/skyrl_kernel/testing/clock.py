"""An event loop in which waiting takes no time, to test what depends on who is faster."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Instead of waiting for a timer it moves the clock to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits, and no timer will wake one: a deadlock")
        if not ready and timeout:
            self.now_s += timeout
        return ready


class _JumpLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def run_without_waiting(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` with a clock that jumps to the next timer whenever nothing can go on.

    ``asyncio.sleep`` orders events as ever, and hours of it take no time. Only
    for code that uses no threads: the clock does not wait for them.

    Raises:
        RuntimeError: Everything waits for something that cannot happen any more.

    Example:
        >>> async def an_hour() -> float:
        ...     await asyncio.sleep(3600)
        ...     return asyncio.get_running_loop().time()
        >>> run_without_waiting(an_hour())
        3600.0
    """
    with asyncio.Runner(loop_factory=_JumpLoop) as runner:
        return runner.run(main)
