"""Tokens as they come, as a rollout's engine hands them out."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from skyrl_kernel.defaults.none import NoEngine
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.protocols import Streams
from skyrl_kernel.records import Completion, GenerateRequest, Piece, Sampling
from skyrl_kernel.rollout.asking import Seat, StreamingSeat

REQUEST = GenerateRequest(tokens=np.array([5], dtype=np.int32), sampling=Sampling(), seed=0)


class Dripping(NoEngine):
    """Three tokens, a while apart."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s
        self.has_ended = False

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        all_tokens = np.array([7, 8, 9], dtype=np.int32)
        try:
            for place in range(3):
                await asyncio.sleep(self.wait_s)
                whole = Completion(
                    tokens=all_tokens,
                    logprobs=np.zeros(3, dtype=np.float32),
                    versions=np.zeros(3, dtype=np.int32),
                    finish_reason="stop",
                )
                yield Piece(
                    tokens=all_tokens[place : place + 1],
                    logprobs=np.zeros(1, dtype=np.float32),
                    completion=whole if place == 2 else None,
                )
        finally:
            self.has_ended = True


def test_an_agent_sees_whether_its_engine_streams() -> None:
    assert isinstance(StreamingSeat(Dripping(0), 1.0), Streams)
    assert not isinstance(Seat(NoEngine(), 1.0), Streams)


def test_a_rollout_gets_all_pieces_and_the_whole_with_the_last() -> None:
    async def use() -> list[Piece]:
        return [piece async for piece in StreamingSeat(Dripping(0), 1.0).stream(REQUEST)]

    pieces = asyncio.run(use())
    assert [int(piece.tokens[0]) for piece in pieces] == [7, 8, 9]
    assert [piece.completion is None for piece in pieces] == [True, True, False]


def test_the_deadline_is_one_for_all_pieces_and_ends_the_request() -> None:
    engine = Dripping(0.1)

    taken = []

    async def use() -> None:
        async for piece in StreamingSeat(engine, 0.25).stream(REQUEST):
            taken.append(piece)

    with pytest.raises(TrajectoryError, match=r"not done .* in 0\.25 s") as caught:
        asyncio.run(use())
    assert caught.value.kind is FailureKind.TIMEOUT
    assert len(taken) == 2
    assert engine.has_ended


def test_closing_the_iterator_closes_the_engines() -> None:
    engine = Dripping(0)

    async def use() -> None:
        async with aclosing(StreamingSeat(engine, 1.0).stream(REQUEST)) as pieces:
            await anext(pieces)
            assert not engine.has_ended
        assert engine.has_ended

    asyncio.run(use())
