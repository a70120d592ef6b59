"""More trajectories than processes for their envs: they wait, and nobody waits for them."""

import asyncio
from typing import Any

import pytest

from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.defaults.env_reward import env_reward
from skyrl_kernel.errors import PluginError
from skyrl_kernel.records import Group, Prompt, Sampling
from skyrl_kernel.rollout.driver import Rollouts
from skyrl_kernel.rollout.env_host import EnvHost
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.testing.scripted import (
    CharTokenizer,
    Script,
    ScriptedEngine,
    make_scripted_env,
)


def blame(error: BaseException, hook: str, step: int | None) -> PluginError:
    return PluginError("some", "skyrl-some 1", hook, None, "controller", f"{error!r}")


def roll_out(processes: int, size: int, script: Script, **row: Any) -> Group:
    async def main() -> Group:
        pool = EnvProcessPool(make_scripted_env, processes)
        script.engine = ScriptedEngine(script)
        rollouts = Rollouts(
            generate=Agent(),
            reward=env_reward,
            engine=script.engine,
            tokenizer=CharTokenizer(),
            envs=EnvHost(make_scripted_env, pool, timeout_s=20, workers=4, max_turns=None),
            attribute=blame,
            seed=5,
            max_prompt_tokens=99,
            max_input_tokens=999,
            reward_timeout_s=10.0,
            request_timeout_s=60.0,
        )
        prompt = Prompt(
            uid="0:0",
            messages=[{"role": "user", "content": "x"}],
            env_class="scripted",
            extras={"isolate": True, **row},
        )
        try:
            async with asyncio.timeout(60):
                return await rollouts.start(
                    prompt,
                    index=0,
                    step=1,
                    size=size,
                    phase="train",
                    sampling=Sampling(max_tokens=8),
                )
        finally:
            await rollouts.close()

    return asyncio.run(main())


@pytest.mark.parametrize("lockstep", [True, False])
def test_more_trajectories_than_processes_are_all_played(lockstep: bool) -> None:
    script = Script(lockstep=lockstep, reply=lambda ask: "0")
    group = roll_out(2, 5, script, rewards=[0, 1])
    assert not group.failures
    assert [len(one.turns) for one in group.trajectories] == [2] * 5


def test_rounds_are_shared_by_all_that_have_a_process() -> None:
    script = Script(lockstep=True, reply=lambda ask: "0")
    roll_out(2, 4, script, rewards=[0, 1])
    assert script.engine is not None
    assert script.engine.calls == [2, 2, 2, 2]  # two at a time, two turns each, twice
