"""What ends a call ends nothing else: deadlines, and exceptions that would end the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


_GRACE_S = 1.0
"""For a task that was cancelled to end."""


class CallTimeout(Exception):
    """A call was still running at its deadline.

    A type of its own: a `TimeoutError` may also be what the called code itself
    raised, long before its deadline.
    """

    place = ""
    """Where it waited, if that is known: the coroutines from outside in."""

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


async def within(awaitable: Awaitable[T], timeout_s: float | None) -> T:
    """Await a coroutine of a plugin; None is without a deadline.

    Raises:
        CallTimeout: It had not finished after ``timeout_s`` seconds; it was cancelled.
    """
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            return await awaitable
    except TimeoutError as error:
        if timeout_s is None or not deadline.expired():
            raise
        raise CallTimeout(timeout_s) from error
    except SystemExit as error:
        raise contained(error) from error


async def given_up_after(coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """As `within`; a coroutine that does not even end when it is cancelled is left behind.

    Raises:
        CallTimeout: It had not finished after ``timeout_s`` seconds; says where it waited.
    """
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            error = CallTimeout(timeout_s)
            error.place = place_of(task)
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE_S)
            raise error
    except asyncio.CancelledError:
        task.cancel()
        raise
    try:
        return task.result()
    except SystemExit as error:
        raise contained(error) from error


async def all_ended(
    parts: Mapping[str, Callable[[], Coroutine[Any, Any, None]]], timeout_s: float
) -> list[str]:
    """End the parts of a run one after the other, whatever of them fails or hangs.

    Args:
        parts: What it is, and what ends it.
        timeout_s: Of each; ``trainer.close_timeout_s``.

    Returns:
        A clause for each that did not end, or not well.
    """
    problems = []
    for what, close in parts.items():
        try:
            await given_up_after(close(), timeout_s)
        except CallTimeout as error:
            problems.append(
                f"{what} did not end within trainer.close_timeout_s={timeout_s:g} s and was left behind; "
                f"it waits in {error.place}"
            )
        except Exception as error:
            problems.append(f"{what} did not end well: {type(error).__name__}: {error}")
    return problems


def place_of(task: "asyncio.Task[Any]") -> str:
    """Where a task waits: the names of its coroutines, from outside in.

    Example:
        >>> async def inner():
        ...     await asyncio.sleep(9)
        >>> async def outer():
        ...     await inner()
        >>> async def look():
        ...     task = asyncio.create_task(outer())
        ...     await asyncio.sleep(0)
        ...     return place_of(task)
        >>> asyncio.run(look())
        'outer → inner → sleep'
    """
    names = []
    waiting: Any = task.get_coro()
    while code := getattr(waiting, "cr_code", None):
        names.append(code.co_qualname.replace(".<locals>", ""))
        waiting = waiting.cr_await
    return " → ".join(names)
