"""Groups of trajectories: who is lost, why, and that the others stay."""

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.defaults.env_reward import env_reward
from skyrl_kernel.errors import FailureKind, ModelError, PluginError
from skyrl_kernel.protocols import Generate, RewardFn, RolloutContext
from skyrl_kernel.records import Group, Prompt, Reward, Sampling, Trajectory
from skyrl_kernel.rollout.driver import Rollouts
from skyrl_kernel.rollout.env_host import EnvHost
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.testing.scripted import (
    Ask,
    CharTokenizer,
    Script,
    ScriptedEngine,
    make_scripted_env,
)


def blame(error: BaseException, hook: str, step: int | None) -> PluginError:
    return PluginError("some", "skyrl-some 1", hook, None, "controller", f"{error!r}")


def roll_out(
    *rows: Mapping[str, Any],
    script: Script | None = None,
    generate: Generate | None = None,
    reward: RewardFn = env_reward,
    size: int = 3,
    on_progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> list[Group]:
    """One group per row."""

    async def main() -> list[Group]:
        pool = EnvProcessPool(make_scripted_env, 1)
        rollouts = Rollouts(
            generate=generate or Agent(),
            reward=reward,
            engine=ScriptedEngine(script or Script()),
            tokenizer=CharTokenizer(),
            envs=EnvHost(make_scripted_env, pool, timeout_s=10, workers=4, max_turns=None),
            attribute=blame,
            on_progress=on_progress,
            **{
                "seed": 5,
                "max_prompt_tokens": 99,
                "max_input_tokens": 999,
                "reward_timeout_s": 10.0,
                "request_timeout_s": 60.0,
                **options,
            },
        )
        try:
            tasks = [
                rollouts.start(
                    Prompt(
                        uid=f"0:{number}",
                        messages=[{"role": "user", "content": "x"}],
                        env_class="scripted",
                        extras=row,
                    ),
                    index=number,
                    step=4,
                    size=size,
                    phase="train",
                    sampling=Sampling(max_tokens=8),
                )
                for number, row in enumerate(rows)
            ]
            return list(await asyncio.gather(*tasks))
        finally:
            await rollouts.close()

    return asyncio.run(main())


def test_a_group_has_a_judged_trajectory_per_sample_in_order() -> None:
    done: list[int] = []
    (group,) = roll_out({"answer": "1"}, on_progress=done.append)

    assert [one.sample for one in group.trajectories] == [0, 1, 2]
    assert group.failures == ()
    for one in group.trajectories:
        assert one.reward is not None
        assert one.reward.total == one.turns[0].reward
        assert one.reward.components == {"env": one.turns[0].reward}
    assert done == [1, 1, 1]


def test_random_numbers_depend_on_seed_phase_group_and_sample_alone() -> None:
    def seeds(**options: Any) -> list[int]:
        asked: list[Ask] = []
        script = Script(reply=lambda ask: asked.append(ask) or "1")
        roll_out({}, {}, script=script, **options)
        return sorted(ask.seed for ask in asked)

    assert seeds() == seeds()
    assert not set(seeds()) & set(seeds(seed=6))
    assert set(seeds(size=2)) < set(seeds(size=3))  # a larger group only adds


def test_one_lost_trajectory_leaves_the_rest_of_its_group() -> None:
    def reply(ask: Ask) -> str:
        if ask.number == 1:
            raise ConnectionError("gone")
        return "1"

    (group,) = roll_out({"answer": "1"}, script=Script(reply=reply))

    assert [one.sample for one in group.trajectories] == [0, 2]
    (failure,) = group.failures
    assert (failure.step, failure.uid, failure.sample) == (4, "0:0", 1)
    assert (failure.kind, failure.plugin) == (FailureKind.INFRASTRUCTURE, "some")
    assert "ConnectionError('gone')" in failure.message


def test_in_lockstep_one_bad_engine_call_costs_its_trajectories_alone() -> None:
    def reply(ask: Ask) -> str:
        if "again" in ask.text:  # a second turn
            raise ConnectionError("gone")
        return "1"

    groups = roll_out(
        {"rewards": [0, 1]}, {"answer": "1"}, script=Script(reply=reply, lockstep=True)
    )

    assert [len(group.trajectories) for group in groups] == [0, 3]
    assert [len(group.failures) for group in groups] == [3, 0]


@pytest.mark.parametrize(("timeout_s", "are_lost"), [(0.2, True), (None, False)])
def test_an_engine_that_keeps_deadlines_itself_is_waited_for(
    timeout_s: float | None, are_lost: bool
) -> None:
    slow = Script(latency_s=lambda ask: 0.5)
    (group,) = roll_out({"answer": "1"}, script=slow, request_timeout_s=timeout_s)
    assert {one.kind for one in group.failures} == ({FailureKind.TIMEOUT} if are_lost else set())
    assert len(group.trajectories) == (0 if are_lost else 3)


def test_an_env_failure_keeps_its_kind_and_names_the_env() -> None:
    first, second = roll_out({"fault": "step nan"}, {"answer": "1"})

    assert [f.kind for f in first.failures] == [FailureKind.TASK] * 3
    assert {f.plugin for f in first.failures} == {"scripted"}
    assert first.trajectories == ()
    assert len(second.trajectories) == 3


def test_an_error_for_the_user_ends_the_run_instead_of_costing_trajectories() -> None:
    async def generate(prompt: Prompt, context: RolloutContext) -> Trajectory:
        raise ModelError("the tokenizer cannot do this")

    with pytest.raises(ModelError, match="cannot do this"):
        roll_out({}, generate=generate)


def altered(**changes: Any) -> Generate:
    """The agent, with its trajectories changed."""

    async def generate(prompt: Prompt, context: RolloutContext) -> Trajectory:
        trajectory = await Agent()(prompt, context)
        return replace(trajectory, **changes) if changes else "text"

    return generate


def with_logprobs(value: float) -> Generate:
    async def generate(prompt: Prompt, context: RolloutContext) -> Trajectory:
        trajectory = await Agent()(prompt, context)
        (segment,) = trajectory.segments
        assert segment.logprobs is not None
        logprobs = segment.logprobs.copy()
        logprobs[-1] = value
        return replace(trajectory, segments=(replace(segment, logprobs=logprobs),))

    return generate


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (altered(), "returned a str, not a Trajectory"),
        (altered(sample=9), "returned trajectory 0:0/9"),
        (altered(segments=()), "has no segment"),
        (with_logprobs(float("nan")), "a log-prob that is not finite"),
        (with_logprobs(0.5), "a log-prob of 0.5; it cannot be above 0"),
    ],
)
def test_what_is_no_trajectory_of_this_prompt_is_refused(generate: Generate, message: str) -> None:
    (group,) = roll_out({}, generate=generate, size=1)

    (failure,) = group.failures
    assert failure.kind is FailureKind.INFRASTRUCTURE
    assert failure.message.startswith("trajectory 0:0/0: ")
    assert message in failure.message


def test_rewards_are_given_for_the_group_at_once() -> None:
    calls: list[int] = []

    def reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
        calls.append(len(trajectories))
        return [Reward(turns=(float(one.sample),)) for one in trajectories]

    (group,) = roll_out({}, reward=reward)

    assert calls == [3]
    assert [one.reward.total for one in group.trajectories if one.reward] == [0, 1, 2]


def test_a_reward_that_raises_for_one_costs_that_one() -> None:
    def reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
        if any(one.sample == 1 for one in trajectories):
            raise ValueError("cannot read this")
        return env_reward(trajectories)

    (group,) = roll_out({"answer": "1"}, reward=reward)

    assert [one.sample for one in group.trajectories] == [0, 2]
    (failure,) = group.failures
    assert failure.sample == 1
    assert "ValueError('cannot read this')" in failure.message


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "returned 0 rewards for 1 trajectories; it must return one Reward for each"),
        (None, "returned None for 1 trajectories"),
        ([1.0], "a float for trajectory 0:0/0, not a Reward"),
        ([Reward(turns=(1.0, 2.0))], "2 turn rewards for trajectory 0:0/0, which has 1 turns"),
        ([Reward(turns=(float("nan"),))], "a reward that is not finite for trajectory 0:0/0"),
        ([Reward(turns=(1.0,), components={"a": float("inf")})], "a reward that is not finite"),
    ],
)
def test_a_reward_of_the_wrong_shape_is_a_task_failure(rewards: Any, message: str) -> None:
    (group,) = roll_out({}, reward=lambda trajectories: rewards, size=1)

    (failure,) = group.failures
    assert failure.kind is FailureKind.TASK
    assert message in failure.message


def test_a_reward_that_hangs_is_a_timeout() -> None:
    (group,) = roll_out({}, reward=lambda t: time.sleep(3), size=1, reward_timeout_s=0.1)

    (failure,) = group.failures
    assert failure.kind is FailureKind.TIMEOUT
    assert "no answer within 0.1 s (generator.reward_timeout_s)" in failure.message


def test_arrays_of_a_trajectory_have_one_length() -> None:
    (group,) = roll_out({"rewards": [0, 0, 1]}, size=2)
    for one in group.trajectories:
        (segment,) = one.segments
        assert segment.logprobs is not None
        assert len(segment.tokens) == len(segment.loss_mask) == len(segment.logprobs)
        assert np.isfinite(segment.logprobs).all()


class Instant:
    """A reward stage that says so."""

    instant = True

    def __init__(self, judge: RewardFn) -> None:
        self.threads: list[threading.Thread] = []
        self._judge = judge

    def __call__(self, trajectories: Sequence[Trajectory]) -> Sequence[Reward]:
        self.threads.append(threading.current_thread())
        return self._judge(trajectories)


def test_an_instant_reward_is_called_in_the_event_loops_thread() -> None:
    reward = Instant(env_reward)
    (group,) = roll_out({"answer": "1"}, reward=reward)

    assert reward.threads == [threading.main_thread()]
    assert len(group.trajectories) == 3


def test_an_instant_reward_that_hangs_is_a_timeout_all_the_same() -> None:
    hangs = Instant(lambda trajectories: time.sleep(60))  # type: ignore[arg-type, return-value]
    (group,) = roll_out({}, reward=hangs, size=1, reward_timeout_s=0.1)

    (failure,) = group.failures
    assert failure.kind is FailureKind.TIMEOUT
    assert "no answer within 0.1 s (generator.reward_timeout_s)" in failure.message


def test_a_wrapper_around_an_instant_reward_is_not_taken_for_one() -> None:
    inner, threads = Instant(env_reward), []

    @functools.wraps(inner)
    def wrapped(trajectories: Sequence[Trajectory]) -> Sequence[Reward]:
        threads.append(threading.current_thread())
        return inner(trajectories)

    roll_out({}, reward=wrapped)

    assert threads != [threading.main_thread()]
