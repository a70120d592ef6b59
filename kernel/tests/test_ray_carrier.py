"""A rank that carries weights, without Ray around it: the others wait in each tensor for all."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine, Trainer
from skyrl_kernel.ray.carrier import Carrier, go_along
from skyrl_kernel.testing.scripted import Script, ScriptedEngine

TENSORS = 4


class Rank:
    """One of two, which compute each tensor together."""

    def __init__(self, meeting: threading.Barrier) -> None:
        self.read: list[str] = []
        self._meeting = meeting

    def weights(self, role: str = "policy") -> Iterator[tuple[str, Any]]:
        yield from self._tensors("weight")

    def adapter(self) -> Iterator[tuple[str, Any]]:
        yield from self._tensors("adapter")

    def _tensors(self, name: str) -> Iterator[tuple[str, Any]]:
        for _ in range(TENSORS):
            self._meeting.wait(5)
            self.read.append(name)
            yield "weight", np.ones(1)


async def whole(trainer: Trainer, engine: Engine, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(trainer.weights())
    await engine.finish_update(version)


async def refused(trainer: Trainer, engine: Engine, version: int) -> None:
    raise WeightSyncError("the server said no")


async def halfway(trainer: Trainer, engine: Engine, version: int) -> None:
    next(trainer.weights())
    raise WeightSyncError("NaN")


async def twice(trainer: Trainer, engine: Engine, version: int) -> None:
    trainer.weights()
    trainer.weights()


async def silent(trainer: Trainer, engine: Engine, version: int) -> None:
    """Commits nothing."""


async def lent(trainer: Any, engine: Engine, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(trainer.adapter())
    await engine.finish_update(version)


def carried(stage: Any, *, is_adapter: bool = False) -> tuple[list[str], list[str]]:
    """What the carrying rank and the other one computed; raises what the stage raised."""
    meeting = threading.Barrier(2)
    first, second = Rank(meeting), Rank(meeting)
    errors: list[BaseException] = []

    def follow() -> None:
        try:
            go_along(second, is_adapter=is_adapter)  # type: ignore[arg-type]  # has what is asked of it
        except BaseException as error:
            errors.append(error)

    other = threading.Thread(target=follow)
    other.start()
    carrier = Carrier(stage, ScriptedEngine(Script()), is_adapter=is_adapter)
    carrier.start()
    try:
        carrier.carry(first, 3)  # type: ignore[arg-type]
    finally:
        carrier.close()
        other.join()
        assert not errors
        assert first.read == second.read
    return first.read, second.read


def test_all_ranks_compute_what_one_of_them_brings() -> None:
    assert carried(whole) == (["weight"] * TENSORS,) * 2


def test_where_an_adapter_is_brought_all_compute_that() -> None:
    assert carried(lent, is_adapter=True) == (["adapter"] * TENSORS,) * 2


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (refused, "the server said no"),
        (halfway, "NaN"),
        (twice, "asked for the weights twice"),
        (silent, "after the sync of policy version 3 its engine says version 0"),
    ],
)
def test_a_stage_that_fails_leaves_no_rank_waiting(stage: Any, message: str) -> None:
    with pytest.raises(WeightSyncError, match=message):
        carried(stage)
