"""Requests shared out among several engines, of which one is ill; completions as they are sampled."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import pytest
import ray

from skyrl_kernel.errors import FailureKind, TrajectoryError, WeightSyncError
from skyrl_kernel.protocols import Streams
from skyrl_kernel.ray.engines import RayEngines
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.packets import Completions, Requests, Rows
from skyrl_kernel.records import Completion, GenerateRequest, IntArray, Piece, Sampling
from skyrl_kernel.rollout.lockstep import Lockstep

NAMES = [Process(name=f"engine {number}") for number in range(2)]
pytestmark = pytest.mark.usefixtures("fakes_on_ray")


class Echo:
    """An engine that answers with its number, or is ill."""

    def __init__(self, number: int) -> None:
        self._number = number

        self.is_streaming = False

    async def streaming(self) -> bool:
        return self.is_streaming

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.is_streaming = True
        try:
            for token in range(1_000_000):
                if token == 3 and self._number == 1:
                    raise TrajectoryError(FailureKind.INFRASTRUCTURE, "engine 1 is ill")
                yield Piece(
                    tokens=np.array([token], np.int32),
                    logprobs=np.zeros(1, np.float32),
                )
                await asyncio.sleep(0.01)
        finally:
            self.is_streaming = False

    async def generate(self, requests: Requests) -> Completions:
        if self._number == 1:
            raise TrajectoryError(FailureKind.INFRASTRUCTURE, "engine 1 is ill")
        one = Completion(
            tokens=np.array([self._number], np.int32),
            logprobs=np.zeros(1, np.float32),
            versions=np.zeros(1, np.int32),
            finish_reason="stop",
        )
        return Completions.of([one] * len(requests.unpack()))


@pytest.fixture(scope="module")
def two(fakes_on_ray: Any) -> Iterator[list[Any]]:
    """The second one is ill."""
    actors = [ray.remote(Echo).options(num_cpus=0).remote(number) for number in range(2)]
    yield actors
    for actor in actors:
        ray.kill(actor)


def request(prompt: int) -> GenerateRequest:
    return GenerateRequest(tokens=np.array([prompt], np.int32), sampling=Sampling(), seed=0)


@pytest.mark.parametrize("batches", [True, False])
def test_an_engine_that_fails_costs_its_own_requests_alone(two: list[Any], batches: bool) -> None:
    engines = RayEngines(two, NAMES, [], batches=batches, lockstep=False)

    async def all_at_once() -> list[Any]:
        asked = [engines.generate([request(prompt)]) for prompt in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(all_at_once())
    lost = [one for one in answers if isinstance(one, TrajectoryError)]
    kept = [one for one in answers if isinstance(one, list)]
    assert [str(one) for one in lost] == ["engine 1 is ill"] * 2
    assert [int(one[0].tokens[0]) for one in kept] == [0, 0]


def test_a_round_of_which_a_part_fails_fails(two: list[Any]) -> None:
    engines = RayEngines(two, NAMES, [], batches=True, lockstep=True)
    with pytest.raises(TrajectoryError, match="engine 1 is ill"):
        asyncio.run(engines.generate([request(prompt) for prompt in range(4)]))


def test_of_such_a_round_each_request_is_asked_again_alone_and_an_ill_engine_costs_only_its_own(
    two: list[Any],
) -> None:
    async def a_round(engines: RayEngines) -> list[Any]:
        lockstep = Lockstep(engines, 60.0)
        seats = [lockstep.enter(place) for place in range(4)]
        asked = [seat.generate([request(prompt)]) for prompt, seat in enumerate(seats)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(a_round(RayEngines(two, NAMES, [], batches=True, lockstep=True)))
    lost = [str(one) for one in found if isinstance(one, TrajectoryError)]
    assert len(lost) < len(found)
    assert set(lost) <= {"engine 1 is ill"}
    both_ill = RayEngines([two[1]] * 2, NAMES, [], batches=True, lockstep=True)
    assert [str(one) for one in asyncio.run(a_round(both_ill))] == ["engine 1 is ill"] * 4


@pytest.mark.parametrize(
    ("precision", "nats", "are_equal"),
    [
        ("float32", 1e-4, True),
        ("float32", 0.03, False),
        ("bfloat16", 0.6, True),  # of one token of four, as in another batch
        ("bfloat16", 1.1, False),
        ("bfloat16", np.nan, False),
    ],
)
def test_engines_with_equal_weights_differ_by_rounding(
    precision: Any, nats: float, are_equal: bool
) -> None:
    engines = RayEngines([None] * 2, NAMES, [], batches=True, lockstep=True, precision=precision)
    first, other = (
        Rows.of([np.zeros(3, dtype=np.float32), np.array([score], dtype=np.float32)])
        for score in (0.0, nats)
    )
    refused = pytest.raises(WeightSyncError, match="do not hold the same weights")
    with contextlib.nullcontext() if are_equal else refused:
        engines._refuse_difference(NAMES[1], first, other)


def test_samples_of_one_prompt_share_an_engine_also_in_calls_of_their_own(two: list[Any]) -> None:
    """As far as the others have work too: `skyrl_kernel.load_balancing`."""
    engines = RayEngines([two[0]] * 2, NAMES, [], batches=False, lockstep=False)
    asked: list[tuple[int, int]] = []
    prompts = [np.arange(start, start + 32, dtype=np.int32) for start in (0, 100)]
    take = engines._balancer.acquire

    def noted(tokens: IntArray) -> int:
        place = take(tokens)
        asked.append((int(tokens[0]), place))
        return place

    engines._balancer.acquire = noted  # type: ignore[method-assign]

    async def all_at_once() -> None:
        one_by_one = [prompts[0], prompts[1], *[prompts[0]] * 3, *[prompts[1]] * 3]
        requests = [GenerateRequest(tokens=one, sampling=Sampling(), seed=0) for one in one_by_one]
        await asyncio.gather(*(engines.generate([one]) for one in requests))

    asyncio.run(all_at_once())
    assert set(asked) == {(0, 0), (100, 1)}


def test_a_completion_comes_as_it_is_sampled_and_ends_when_its_iterator_is_closed(
    two: list[Any],
) -> None:
    engines = RayEngines(two[:1], NAMES[:1], [], batches=False, lockstep=False)
    assert isinstance(engines, Streams)

    async def first_three() -> list[int]:
        async with contextlib.aclosing(engines.stream(request(0))) as pieces:
            found = [int((await anext(pieces)).tokens[0]) for _ in range(3)]
        for _ in range(100):
            if not await two[0].streaming.remote():
                return found
            await asyncio.sleep(0.1)
        raise AssertionError("it goes on for nobody")

    assert asyncio.run(first_three()) == [0, 1, 2]


def test_an_engine_that_fails_while_it_streams_costs_the_completion(two: list[Any]) -> None:
    engines = RayEngines(two[1:], NAMES[1:], [], batches=False, lockstep=False)

    async def all_of_it() -> None:
        async with contextlib.aclosing(engines.stream(request(0))) as pieces:
            async for _ in pieces:
                pass

    with pytest.raises(TrajectoryError, match="engine 1 is ill"):
        asyncio.run(all_of_it())
