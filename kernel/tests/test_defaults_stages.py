"""The kernel's own plugins, one by one."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from skyrl_kernel.config import merge_layers, resolve_config
from skyrl_kernel.defaults import (
    accuracy,
    agent,
    env_reward,
    keep_all,
    local,
    none,
    shared,
    token_mean,
)
from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.records import Failure, Group, Prompt, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.testing.scripted import Script, ScriptedEngine, ScriptedTrainer

SETTINGS = resolve_config(merge_layers([], [], []), {}, {})
PROMPT = Prompt(uid="p", messages=(), env_class="e")


def trajectory(*rewards: float) -> Trajectory:
    segment = Segment(
        tokens=np.array([1], dtype=np.int32), num_prompt_tokens=1, loss_mask=np.array([False])
    )
    return Trajectory(
        prompt=PROMPT,
        sample=0,
        segments=(segment,),
        turns=tuple(Turn(segment=0, start=1, stop=1, reward=r, action="") for r in rewards),
        stop_reason=StopReason.STOP,
    )


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (lambda name: agent.generate(name, SETTINGS), "agent"),
        (env_reward.reward, "env_reward"),
        (keep_all.select, "keep_all"),
        (token_mean.make_reduction, "token_mean"),
        (accuracy.evaluate, "accuracy"),
        (shared.sync_weights, "shared"),
        (none.sync_weights, "none"),
        (none.make_engine, "none"),
        (local.make_runtime, "local"),
    ],
)
def test_each_answers_to_its_own_name_only(hook: Callable[[str], object], name: str) -> None:
    assert hook(name) is not None
    assert hook("another") is None


def test_the_env_reward_is_what_the_env_gave_turn_by_turn() -> None:
    first, second = env_reward.env_reward([trajectory(0.25, 0.5), trajectory()])
    assert (first.turns, first.components, first.total) == ((0.25, 0.5), {"env": 0.75}, 0.75)
    assert (second.turns, second.total) == ((), 0.0)


def test_a_group_is_kept_unless_too_much_of_it_was_lost_to_compare_anything() -> None:
    failure = Failure(step=1, uid="p", sample=0, kind="task", plugin=None, message="")
    groups = [
        Group(index=0, prompt=PROMPT, trajectories=(trajectory(1.0),) * 2, failures=(failure,)),
        Group(index=1, prompt=PROMPT, trajectories=(), failures=(failure,)),
        Group(index=2, prompt=PROMPT, trajectories=(trajectory(1.0),), failures=(failure,)),
        Group(index=3, prompt=PROMPT, trajectories=(trajectory(1.0),)),
    ]
    selection = keep_all.keep_all(groups, 4, np.random.default_rng(0))
    assert selection.verdicts == ("keep", "drop", "mask", "keep")
    assert selection.reasons[1:3] == (
        "all trajectories lost",
        "all trajectories but one lost: nothing to compare it with",
    )


def test_the_engine_that_is_none_refuses_with_the_key_to_set() -> None:
    engine = none.NoEngine()
    for call in (engine.generate([]), engine.logprobs([], temperature=1.0)):
        with pytest.raises(RuntimeError, match=r"inference_engine.backend=none generates nothing"):
            asyncio.run(call)


def test_without_an_engine_a_sync_only_counts() -> None:
    engine = none.NoEngine()
    sync = none.sync_weights("none")
    assert sync is not None
    asyncio.run(sync(ScriptedTrainer(Script()), engine, 3))
    assert engine.version == 3


def test_sharing_needs_a_trainer_that_lends_and_an_engine_that_takes() -> None:
    class Lends(ScriptedTrainer):
        def module(self, role: str) -> str:
            return f"module of {role}"

    class Shares(ScriptedEngine):
        shared: object = None

        def share(self, module: object) -> None:
            self.shared = module

        async def begin_update(self, version: int) -> None:
            await super().begin_update(version)
            await self.apply_update([("weight", np.zeros(1))])

    script = Script()
    engine = Shares(script)
    asyncio.run(shared.shared(Lends(script), engine, 2))
    assert (engine.shared, engine.version) == ("module of policy", 2)

    with pytest.raises(CapabilityError, match="share a module; this trainer does not"):
        asyncio.run(shared.shared(ScriptedTrainer(script), engine, 3))
    with pytest.raises(CapabilityError, match="share a module; this engine does not"):
        asyncio.run(shared.shared(Lends(script), ScriptedEngine(script), 3))
