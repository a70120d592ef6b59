"""An event loop that ends although something in it does not."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

HEARD = b"Ctrl-C: the run ends when what it computes now is done; Ctrl-C again ends it at once\n"
HEARD_AFTER_S = 1.0


def run(main: Coroutine[Any, Any, T], patience_s: float) -> T:
    """`asyncio.run`, which waits for tasks and threads that ``main`` left behind no longer than it is told.

    Args:
        main: What to run.
        patience_s: Seconds for tasks that are still there to end when they are cancelled.
            Those that do not, and threads of `asyncio.to_thread`, end with the process.

    Raises:
        KeyboardInterrupt: Ctrl-C: ``main`` is cancelled at the first, and left at the second.
    """
    runner = asyncio.Runner()
    runner.get_loop().set_default_executor(_Daemons())
    try:
        return runner.run(_answering(main))
    finally:
        left = runner.run(_cancel_others(patience_s))
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio.gather does it
        if left:  # `Runner.close` would wait for them
            runner.get_loop().close()
            asyncio.set_event_loop(None)
        else:
            runner.close()


async def _answering(main: Coroutine[Any, Any, T]) -> T:
    with _ctrl_c_is_answered():
        return await main


@contextlib.contextmanager
def _ctrl_c_is_answered() -> Iterator[None]:
    """Say that Ctrl-C was heard, where nothing comes of it soon: an update may compute for minutes."""
    inner = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(inner):
        yield
        return
    # Past the buffers, whose lock the interrupted line may hold.
    notice = threading.Timer(HEARD_AFTER_S, os.write, (2, HEARD))
    notice.daemon = True

    def answer(number: int, frame: Any) -> None:
        if notice.ident is None:
            notice.start()
        inner(number, frame)

    signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        notice.cancel()
        signal.signal(signal.SIGINT, inner)


async def _cancel_others(patience_s: float) -> "set[asyncio.Task[Any]]":
    """Cancel every other task; those that have not ended."""
    tasks = asyncio.all_tasks()
    tasks -= {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    return (await asyncio.wait(tasks, timeout=patience_s))[1] if tasks else set()


class _Daemons(ThreadPoolExecutor):
    """A daemon thread for each call: neither the loop nor the interpreter waits for one that hangs."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call ``fn`` in a thread of its own."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # from here on it cannot be cancelled

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # passed on to whoever awaits the call
                future.set_exception(error)

        threading.Thread(target=call, name="skyrl-call", daemon=True).start()
        return future
