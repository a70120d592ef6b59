"""Asking an engine: under a deadline, and one bad request costs one trajectory."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from skyrl_kernel.errors import FailureKind, SkyrlError, TrajectoryError
from skyrl_kernel.protocols import Streams
from skyrl_kernel.records import Completion, GenerateRequest, Piece
from skyrl_kernel.rollout.deadline import CallTimeout, within

if TYPE_CHECKING:
    from skyrl_kernel.protocols import Engine

Answer = Completion | Exception


async def ask(
    engine: "Engine", requests: Sequence[GenerateRequest], timeout_s: float | None
) -> list[Completion]:
    """The engine's completions of ``requests``, one each.

    Raises:
        TrajectoryError: No answer within ``timeout_s``, or not one for each request.
    """
    try:
        completions = await within(engine.generate(requests), timeout_s)
    except CallTimeout as error:
        raise TrajectoryError(
            FailureKind.TIMEOUT, f"the engine gave {error} (generator.request_timeout_s)"
        ) from error
    if len(completions) != len(requests):
        raise TrajectoryError(
            FailureKind.INFRASTRUCTURE,
            f"the engine returned {len(completions)} completions for {len(requests)} requests; it must "
            "return one each, in order",
        )
    return completions


async def ask_each(
    engine: "Engine", requests: Sequence[GenerateRequest], timeout_s: float | None
) -> list[Answer]:
    """A completion or an exception for each request.

    If the engine fails on all of them together it is asked again one by one, so
    that only what must be lost is lost. A deadline is not tried again: that would
    multiply the wait.
    """
    try:
        return list(await ask(engine, requests, timeout_s))
    except SkyrlError as error:
        if not isinstance(error, TrajectoryError):
            raise
        whole: Exception = error
        is_final = error.kind is FailureKind.TIMEOUT
    except Exception as error:
        whole, is_final = error, False
    if is_final or len(requests) == 1:
        return [whole] * len(requests)
    answers: list[Answer] = []
    for request in requests:
        answers += await ask_each(engine, [request], timeout_s)
    return answers


class Seat:
    """The engine as one trajectory sees it, where requests need not wait for each other."""

    def __init__(self, engine: "Engine", timeout_s: float | None) -> None:
        self._engine = engine
        self._timeout_s = timeout_s

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete the requests; see `ask`."""
        return await ask(self._engine, requests, self._timeout_s)

    def step_aside(self) -> Callable[[], None]:
        """See `LockstepSeat.step_aside`; here nobody waits for anybody."""
        return _nothing

    def leave(self) -> None:
        """Nobody waits for this trajectory."""


class StreamingSeat(Seat):
    """The same, where the engine streams: an agent asks with ``isinstance(context.engine, Streams)``."""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The pieces of one completion; the whole is under the deadline.

        Raises:
            TrajectoryError: It was not done in time.
        """
        assert isinstance(self._engine, Streams), "made for engines that stream"
        loop = asyncio.get_running_loop()
        until = None if self._timeout_s is None else loop.time() + self._timeout_s
        async with aclosing(self._engine.stream(request)) as pieces:
            while True:
                try:
                    async with asyncio.timeout_at(until) as deadline:
                        piece = await anext(pieces)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    if not deadline.expired():
                        raise
                    raise TrajectoryError(
                        FailureKind.TIMEOUT,
                        f"the engine was not done with a streamed completion in {self._timeout_s:g} s "
                        "(generator.request_timeout_s)",
                    ) from error
                yield piece


def _nothing() -> None: ...
