"""What ends a call ends nothing else: deadlines, and exceptions that would end the event loop."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """A call was still running at its deadline.

    A type of its own: a `TimeoutError` may also be what the called code itself
    raised, long before its deadline.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"no answer within {timeout_s:g} s")


def contained(error: BaseException) -> Exception:
    """``error`` in a form that fails one call only.

    ``sys.exit()`` in a plugin would end the run, and a `StopIteration` cannot pass
    through a future.

    Example:
        >>> contained(SystemExit(1))
        RuntimeError('SystemExit: 1')
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


async def within(awaitable: Awaitable[T], timeout_s: float) -> T:
    """Await a coroutine of a plugin.

    Raises:
        CallTimeout: It had not finished after ``timeout_s`` seconds; it was cancelled.
    """
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return await awaitable
    except TimeoutError as error:
        if deadline.expired():
            raise CallTimeout(timeout_s) from error
        raise
    except SystemExit as error:
        raise contained(error) from error
