"""Weights that several ranks hand over in step, where one of them fails or hangs."""

import asyncio
import time
from typing import Any

import pytest
import ray

from skyrl_kernel.errors import RankError, RunError
from skyrl_kernel.ray import calls
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.ranks import Ranks
from skyrl_kernel.ray.trainer import Weights

pytestmark = pytest.mark.usefixtures("fakes_on_ray")
NAMES = [Process(name=f"trainer rank {rank}", where=f"node-{rank}") for rank in range(2)]


class Part:
    """A rank whose weights are three parcels; ``fault`` is what it does at the second."""

    def __init__(self, fault: str = "") -> None:
        self._fault, self._asked = fault, 0

    def begin_weights(self, role: str) -> None:
        if self._fault == "hangs":
            time.sleep(60)

    def parcel(self, is_first: bool) -> tuple[Any, bool]:
        self._asked += 1
        if self._asked == 2 and self._fault == "fails":
            raise RuntimeError("no such luck")
        if self._asked == 2 and self._fault == "waits":
            time.sleep(60)  # in a collective, for the one that failed
        return (f"parcel {self._asked}" if is_first else None), self._asked < 3


def weights_of(*faults: str) -> tuple[Weights, list[Any]]:
    actors = [ray.remote(Part).options(num_cpus=0).remote(fault) for fault in faults]
    return Weights(Ranks(actors, NAMES, [ray.put((0, 1)) for _ in actors]), "policy"), actors


async def taken(weights: Weights) -> list[str]:
    return [await parcel async for parcel in weights.parcels()]


def end(actors: list[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


def test_the_first_ranks_parcels_are_handed_over_in_order() -> None:
    weights, actors = weights_of("", "")
    assert asyncio.run(taken(weights)) == ["parcel 1", "parcel 2", "parcel 3"]
    end(actors)


def test_a_rank_that_fails_between_two_parcels_is_told_although_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "GRACE_S", 0.5)
    weights, actors = weights_of("waits", "fails")
    began = time.monotonic()
    with pytest.raises(
        RunError, match=r"^trainer rank 1 on node-1 failed: RuntimeError: no such luck"
    ):
        asyncio.run(taken(weights))
    assert time.monotonic() - began < 30
    end(actors)


def test_a_rank_that_hangs_before_the_first_parcel_keeps_no_deadline_from_passing() -> None:
    weights, actors = weights_of("", "hangs")

    async def within_a_deadline() -> None:
        async with asyncio.timeout(1):
            await taken(weights)

    with pytest.raises(TimeoutError):
        asyncio.run(within_a_deadline())
    end(actors)


def test_who_computes_something_else_is_not_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GRACE_S", 0.2)
    critic = Process(name="critic rank 0", where="node-2")
    lost = ray.put(None)

    async def alone(who: Process) -> None:
        if who is NAMES[0]:
            raise RankError("rank 0 of 2 lost its partner")
        await asyncio.sleep(60)

    monkeypatch.setattr(calls, "answer", lambda _, who: alone(who))
    with pytest.raises(RankError, match=r"^trainer rank 1 on node-1 does not answer: it hangs"):
        asyncio.run(calls.answers_of([lost] * 3, [*NAMES, critic]))
