"""Hands an engine all requests of a round at once, in a fixed order.

An engine that computes in this process gains nothing from requests that trickle
in, and its numbers depend on what shares a batch. So a round begins when every
live trajectory either waits for a completion or has ended, and its requests are
ordered by trajectory. Synchronous runs are reproducible because of this.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from skyrl_kernel.records import Completion, GenerateRequest
from skyrl_kernel.rollout.asking import Answer, ask_each

if TYPE_CHECKING:
    from skyrl_kernel.protocols import Engine

_Waiting = tuple[Sequence[GenerateRequest], "asyncio.Future[list[Completion]]"]


class Lockstep:
    """Collects the requests of live trajectories for one engine.

    Every trajectory takes a seat (`enter`, with its place in the order) before its
    first request and leaves it after its last. Everything runs in one event loop.

    Args:
        engine: Answers the rounds.
        timeout_s: Deadline of one round.
    """

    def __init__(self, engine: "Engine", timeout_s: float | None) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._live: set[int] = set()
        self._waiting: dict[int, list[_Waiting]] = {}
        """Place → its calls; more than one where a trajectory asks in parallel."""
        self._round: asyncio.Task[None] | None = None

    def enter(self, place: int) -> "LockstepSeat":
        """A seat for the trajectory at ``place``; places are unique among live ones."""
        if place in self._live:
            raise ValueError(f"place {place} is taken")
        self._live.add(place)
        return LockstepSeat(self, place)

    def leave(self, place: int) -> None:
        """The trajectory has ended; others no longer wait for it."""
        self._live.discard(place)
        self._waiting.pop(place, None)
        self._start_if_ready()

    def step_aside(self, place: int) -> Callable[[], None]:
        """See `LockstepSeat.step_aside`."""
        self._live.discard(place)
        self._start_if_ready()
        return lambda: self._live.add(place)

    def request(
        self, place: int, requests: Sequence[GenerateRequest]
    ) -> "asyncio.Future[list[Completion]]":
        """The results of the round that these requests will be in."""
        future: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(place, []).append((requests, future))
        self._start_if_ready()
        return future

    def _start_if_ready(self) -> None:
        if self._waiting and len(self._waiting) == len(self._live) and self._round is None:
            self._round = asyncio.ensure_future(self._run_round())

    async def _run_round(self) -> None:
        waiting = [one for place in sorted(self._waiting) for one in self._waiting[place]]
        self._waiting.clear()
        try:
            asked = [request for requests, _ in waiting for request in requests]
            answers = await ask_each(self._engine, asked, self._timeout_s)
            end = 0
            for requests, future in waiting:
                start, end = end, end + len(requests)
                _hand_over(answers[start:end], future)
        except BaseException as error:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._round = None
        self._start_if_ready()


def _hand_over(answers: list[Answer], future: "asyncio.Future[list[Completion]]") -> None:
    """Give one call its completions, or the first exception among them."""
    if future.done():
        return
    completions = [answer for answer in answers if isinstance(answer, Completion)]
    if len(completions) == len(answers):
        future.set_result(completions)
    else:
        future.set_exception(next(one for one in answers if isinstance(one, Exception)))


class LockstepSeat:
    """The engine as one trajectory sees it: its requests wait for the round."""

    __slots__ = ("_lockstep", "_place")

    def __init__(self, lockstep: Lockstep, place: int) -> None:
        self._lockstep = lockstep
        self._place = place

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete the requests in one round."""
        return await self._lockstep.request(self._place, requests) if requests else []

    def step_aside(self) -> Callable[[], None]:
        """Rounds begin without this trajectory, which waits for what others hold.

        Returns:
            To be called the moment it need not wait any more: rounds wait for it again.
        """
        return self._lockstep.step_aside(self._place)

    def leave(self) -> None:
        """The trajectory has ended."""
        self._lockstep.leave(self._place)
