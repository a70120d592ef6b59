"""What every test of an engine asks of a subclass."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import GenerateRequest, IntArray, Sampling

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class EngineSubject:
    """The engine under test.

    It lets the event loop have its turn: whoever computes in the caller's thread awaits at least
    ``asyncio.sleep(0)`` between two tokens, and while it is paused. Otherwise no abort, no update and
    no deadline would ever come; a test fails that is kept for ``patience_s``.
    """

    plugin: str | None = None
    """Name of its plugin; what its ``plugin.toml`` offers is compared with what is checked here."""

    tolerance = 1e-4
    """Most nats between two ways to the same log-prob, in float32."""
    has_random_sampling = True
    """False for an engine whose completions do not depend on the seed."""
    patience_s = 60.0
    """After so long a call hangs, or keeps the event loop."""

    def make(self) -> Engine:
        """An engine at version 0 with its first weights, the same ones every time, in float32.

        It is closed after its use, and the next one is made.
        """
        raise NotImplementedError("override make()")

    def prompts(self) -> Sequence[IntArray]:
        """At least two different prompts, of different lengths."""
        raise NotImplementedError("override prompts()")

    def other_weights(self) -> "Iterable[tuple[str, torch.Tensor]]":
        """All tensors of another model of the same shape, by Hugging Face name."""
        raise NotImplementedError("override other_weights()")

    def _use(
        self, use: Callable[[Engine], Awaitable[T]], make: Callable[[], Engine] | None = None
    ) -> T:
        engine = (make or self.make)()

        async def main() -> T:
            turns = asyncio.create_task(self._takes_turns())
            try:
                return await use(engine)
            finally:
                turns.cancel()
                await engine.close()

        with _alarm(self.patience_s):
            return asyncio.run(main())

    async def _takes_turns(self) -> None:
        """Put the alarm off for as long as the event loop runs."""
        while True:
            _put_off(self.patience_s)
            await asyncio.sleep(self.patience_s / 10)

    def _request(
        self, prompt: IntArray, max_tokens: int, *, seed: int = 0, **sampling: Any
    ) -> GenerateRequest:
        settings = Sampling(max_tokens=max_tokens, **sampling)
        return GenerateRequest(tokens=prompt, sampling=settings, seed=seed)


def _put_off(seconds: float) -> None:
    if _can_alarm():
        # Again and again: one that is interrupted may have others beside it.
        signal.setitimer(signal.ITIMER_REAL, seconds, max(seconds / 10, 0.1))


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt what keeps this thread's event loop for so long; elsewhere than in the main thread nothing."""
    if not _can_alarm():
        yield
        return

    told: list[str] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        where = "" if frame is None else f" in {frame.f_code.co_qualname}, line {frame.f_lineno}"
        told.append(
            f"the engine keeps the event loop for {seconds:g} s (patience_s){where}: no abort, update or "
            "deadline has its turn; await asyncio.sleep(0) between tokens, or compute in a thread"
        )
        pytest.fail(told[0])

    before = signal.signal(signal.SIGALRM, interrupt)
    left = signal.getitimer(signal.ITIMER_REAL)
    _put_off(seconds)
    try:
        yield
    except Exception:
        if told:  # it follows from the call that was interrupted
            pytest.fail(told[0])
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)
    assert not told, told[0]


def _can_alarm() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
