"""Rounds: one engine call for all that wait, in a fixed order, and never a round that cannot begin."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import Completion, GenerateRequest, Sampling
from skyrl_kernel.rollout.lockstep import Lockstep, LockstepSeat
from skyrl_kernel.testing.clock import run_without_waiting


class Rounds:
    """An engine that notes the seeds of each call."""

    lockstep = True

    def __init__(self, fails: Callable[[int], bool] = lambda call: False) -> None:
        self.calls: list[list[int]] = []
        self._fails = fails

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self.calls.append([request.seed for request in requests])
        await asyncio.sleep(0.1)
        if self._fails(len(self.calls)):
            raise ConnectionError("gone")
        return [
            Completion(
                tokens=np.array([request.seed], dtype=np.int32),
                logprobs=np.zeros(1, dtype=np.float32),
                versions=np.zeros(1, dtype=np.int32),
                finish_reason="stop",
            )
            for request in requests
        ]


def request(seed: int) -> GenerateRequest:
    return GenerateRequest(tokens=np.array([1], dtype=np.int32), sampling=Sampling(), seed=seed)


async def play(seat: LockstepSeat, delays_s: Sequence[float], name: int) -> list[int]:
    """A trajectory with a turn per delay; its requests are seeded ``100 × name + turn``."""
    try:
        got = []
        for turn, delay_s in enumerate(delays_s):
            await asyncio.sleep(delay_s)
            (completion,) = await seat.generate([request(100 * name + turn)])
            got.append(int(completion.tokens[0]))
        return got
    finally:
        seat.leave()


def rounds_of(delays: Sequence[Sequence[float]], engine: Rounds) -> list[Any]:
    async def main() -> list[Any]:
        lockstep = Lockstep(engine, 60.0)
        seats = [lockstep.enter(place) for place in range(len(delays))]
        tasks = [
            play(seat, one, name)
            for name, (seat, one) in enumerate(zip(seats, delays, strict=True))
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    return run_without_waiting(main())


def test_a_round_is_ordered_by_trajectory_whoever_came_first() -> None:
    engine = Rounds()
    rounds_of([[3.0, 0.5], [1.0, 2.0], [2.0, 0.1]], engine)

    assert engine.calls == [[0, 100, 200], [1, 101, 201]]


def test_a_trajectory_that_leaves_releases_the_round() -> None:
    engine = Rounds()
    rounds_of([[0.0], [0.0, 0.0, 0.0], [0.0, 5.0]], engine)

    assert engine.calls == [[0, 100, 200], [101, 201], [102]]


@given(
    delays=st.lists(
        st.lists(st.sampled_from([0.0, 0.05, 0.1, 1.0, 7.0]), max_size=4), min_size=1, max_size=6
    )
)
def test_rounds_depend_on_who_plays_how_long_and_not_on_when(delays: list[list[float]]) -> None:
    engine = Rounds()
    answers = rounds_of(delays, engine)

    # Round r holds turn r of every trajectory that has one: nobody overtakes, nobody waits forever.
    longest = max(len(turns) for turns in delays)
    assert engine.calls == [
        [100 * name + turn for name, turns in enumerate(delays) if len(turns) > turn]
        for turn in range(longest)
    ]
    assert answers == [
        [100 * name + turn for turn in range(len(turns))] for name, turns in enumerate(delays)
    ]


def test_an_engine_that_fails_on_all_reaches_all_that_wait_and_the_next_round_works() -> None:
    engine = Rounds(fails=lambda call: call <= 3)  # the round, and each of its requests alone

    async def main() -> list[Any]:
        lockstep = Lockstep(engine, 60.0)

        async def again(seat: LockstepSeat, name: int) -> list[int]:
            try:
                with pytest.raises(ConnectionError, match="gone"):
                    await seat.generate([request(name)])
                (completion,) = await seat.generate([request(name + 10)])
                return completion.tokens.tolist()
            finally:
                seat.leave()

        seats = [lockstep.enter(place) for place in (0, 1)]
        return await asyncio.gather(*(again(seat, name) for name, seat in enumerate(seats)))

    assert run_without_waiting(main()) == [[10], [11]]
    assert engine.calls == [[0, 1], [0], [1], [10, 11]]


def test_a_round_that_fails_is_asked_again_one_by_one() -> None:
    engine = Rounds(fails=lambda call: call in {1, 3})  # together, and then the second alone

    first, second, third = rounds_of([[0.0], [0.0], [0.0]], engine)

    assert (first, third) == ([0], [200])
    assert isinstance(second, ConnectionError)
    assert engine.calls == [[0, 100, 200], [0], [100], [200]]


def test_requests_made_in_parallel_by_one_trajectory_are_all_answered() -> None:
    engine = Rounds()

    async def main() -> list[int]:
        lockstep = Lockstep(engine, 60.0)
        seat = lockstep.enter(0)
        answers = await asyncio.gather(*(seat.generate([request(n)]) for n in (1, 2)))
        pair = await seat.generate([request(3), request(4)])
        return [int(one.tokens[0]) for one in [*answers[0], *answers[1], *pair]]

    assert run_without_waiting(main()) == [1, 2, 3, 4]
    assert engine.calls == [[1, 2], [3, 4]]


def test_an_engine_that_hangs_is_a_timeout_for_all_and_not_asked_again() -> None:
    class Hangs(Rounds):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            await asyncio.sleep(1e9)
            return []

    for answer in rounds_of([[0.0], [0.0]], Hangs()):
        assert isinstance(answer, TrajectoryError)
        assert answer.kind is FailureKind.TIMEOUT
        assert "generator.request_timeout_s" in str(answer)


def test_too_few_completions_are_asked_for_again_one_by_one() -> None:
    class Forgets(Rounds):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            return (await super().generate(requests))[:1]

    assert rounds_of([[0.0], [0.0]], Forgets()) == [[0], [100]]


def test_no_completion_at_all_is_an_error_and_not_a_hang() -> None:
    class Mute(Rounds):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            return []

    for answer in rounds_of([[0.0], [0.0]], Mute()):
        assert isinstance(answer, TrajectoryError)
        assert "0 completions for 1 requests" in str(answer)


def test_a_cancelled_trajectory_releases_the_round() -> None:
    engine = Rounds()

    async def main() -> list[int]:
        lockstep = Lockstep(engine, 60.0)
        seats = [lockstep.enter(place) for place in (0, 1)]
        slow = asyncio.create_task(play(seats[0], [50.0], 0))
        quick = asyncio.create_task(play(seats[1], [0.0], 1))
        await asyncio.sleep(1)
        assert engine.calls == []  # everybody is waited for
        slow.cancel()
        return await quick

    assert run_without_waiting(main()) == [100]
    assert engine.calls == [[100]]


def test_a_seat_is_taken_once() -> None:
    lockstep = Lockstep(Rounds(), 60.0)
    lockstep.enter(3)
    with pytest.raises(ValueError, match="place 3 is taken"):
        lockstep.enter(3)
