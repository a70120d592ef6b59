"""Requests shared out among several engines, of which one is ill."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.ray.engines import RayEngines
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.packets import Completions, Requests
from skyrl_kernel.records import Completion, GenerateRequest, Sampling

pytestmark = pytest.mark.usefixtures("fakes_on_ray")


class Echo:
    """An engine that answers with its number, or is ill."""

    def __init__(self, number: int) -> None:
        self._number = number

    def generate(self, requests: Requests) -> Completions:
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
    names = [Process(name=f"engine {number}") for number in range(2)]
    engines = RayEngines(two, names, [], batches=batches, lockstep=False)

    async def all_at_once() -> list[Any]:
        asked = [engines.generate([request(prompt)]) for prompt in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(all_at_once())
    lost = [one for one in answers if isinstance(one, TrajectoryError)]
    kept = [one for one in answers if isinstance(one, list)]
    assert [str(one) for one in lost] == ["engine 1 is ill"] * 2
    assert [int(one[0].tokens[0]) for one in kept] == [0, 0]


def test_a_round_of_which_a_part_fails_fails(two: list[Any]) -> None:
    names = [Process(name=f"engine {number}") for number in range(2)]
    engines = RayEngines(two, names, [], batches=True, lockstep=True)
    with pytest.raises(TrajectoryError, match="engine 1 is ill"):
        asyncio.run(engines.generate([request(prompt) for prompt in range(4)]))
