"""A rank that carries weights, without Ray around it: the others wait in each tensor for all."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from skyrl_kernel.errors import CapabilityError, WeightSyncError
from skyrl_kernel.protocols import Engine, Trainer
from skyrl_kernel.ray.engines import RayEngines
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.rank_sender import RankSender, go_along
from skyrl_kernel.ray.sync_by_ranks import SyncByRanks
from skyrl_kernel.testing.scripted import Script, ScriptedEngine
from skyrl_kernel.transport import RankSync

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


def sent(stage: Any, *, is_adapter: bool = False) -> tuple[list[str], list[str]]:
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
    sender = RankSender(stage, ScriptedEngine(Script()), is_adapter=is_adapter)
    sender.start()
    try:
        sender.send(first, 3)  # type: ignore[arg-type]
    finally:
        sender.close()
        other.join()
        assert not errors
        assert first.read == second.read
    return first.read, second.read


def test_all_ranks_compute_what_one_of_them_brings() -> None:
    assert sent(whole) == (["weight"] * TENSORS,) * 2


def test_where_an_adapter_is_brought_all_compute_that() -> None:
    assert sent(lent, is_adapter=True) == (["adapter"] * TENSORS,) * 2


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
        sent(stage)


@pytest.mark.parametrize(
    ("node", "address", "is_refused"),
    [
        ("a", "http://127.0.0.1:8000", False),
        ("b", "http://10.0.0.2:8000", False),
        ("b", "http://127.0.0.1:8000", True),
        ("b", "http://localhost:8000", True),
        (None, "http://127.0.0.1:8000", False),  # of the user's own, wherever it is
    ],
)
def test_a_server_on_another_machine_is_not_looked_for_on_this_one(
    node: str | None, address: str, is_refused: bool
) -> None:
    nodes = {"trainer rank 0": "a"} | ({} if node is None else {"engine 0": node})
    engine = Process(name="engine 0", where="gpu-2")
    stage = SyncByRanks(
        RankSync(name="gloo", by_each=False, is_adapter=False),
        [None],
        [Process(name="trainer rank 0", where="gpu-1")],
        RayEngines([None], [engine], [], batches=False, lockstep=False),
        None,  # type: ignore[arg-type]  # nobody is attached
        nodes,
    )
    refused = pytest.raises(
        CapabilityError,
        match=r"=gloo has trainer rank 0 on gpu-1 bring .* engine 0 on gpu-2, which .* use .*=auto",
    )
    with refused if is_refused else contextlib.nullcontext():
        stage._refuse_far(0, 0, [address])
