"""The control experiments change what they say they change, and nothing else."""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from skyrl_controls import led_start, random_reward, time_limit

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.defaults.env_reward import env_reward
from skyrl_kernel.errors import StopRun
from skyrl_kernel.protocols import RunInfo, StepInfo
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    Prompt,
    Sampling,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


class Settings:
    def __getitem__(self, section: type) -> Any:
        assert section is TrainerConfig
        return TrainerConfig(seed=7)


def wrapped(wrapper: Generator[None, Any, Any], inner: Any) -> Any:
    """What a wrapper makes of a callable."""
    next(wrapper)
    with pytest.raises(StopIteration) as outcome:
        wrapper.send(inner)
    return outcome.value.value


def trajectory(split: str, *, uid: str = "0", sample: int = 0, reward: float = 1.0) -> Trajectory:
    return Trajectory(
        prompt=Prompt(
            uid=uid,
            messages=[{"role": "user", "content": "272 * 5"}],
            env_class="multiply",
            extras={"extra_info": {"split": split}},
        ),
        sample=sample,
        segments=(
            Segment(
                tokens=np.array([1, 2], np.int32),
                num_prompt_tokens=1,
                loss_mask=np.array([False, True]),
            ),
        ),
        turns=(Turn(segment=0, start=1, stop=2, reward=reward, action="2*5=10"),),
        stop_reason=StopReason.STOP,
    )


def test_the_coin_judges_training_and_leaves_evaluation_alone() -> None:
    judge = wrapped(random_reward.reward(Settings()), env_reward)
    held_out = [trajectory("test", uid=str(i), reward=0.25) for i in range(20)]
    assert [one.total for one in judge(held_out)] == [0.25] * 20
    trained = [trajectory("train", uid=str(i), reward=0.25) for i in range(400)]
    tosses = [one.total for one in judge(trained)]
    assert set(tosses) == {0.0, 1.0}
    # 400 fair tosses: the mean is 0.5, its standard error 0.5 / 20 = 0.025.
    assert sum(tosses) / 400 == pytest.approx(0.5, abs=4 * 0.025)


def test_the_coin_depends_on_who_answered_and_not_on_the_answer() -> None:
    judge = wrapped(random_reward.reward(Settings()), env_reward)
    right = [trajectory("train", uid=str(i), reward=1.0) for i in range(50)]
    wrong = [trajectory("train", uid=str(i), reward=0.0) for i in range(50)]
    assert judge(right) == judge(wrong)
    others = [replace(one, sample=1) for one in right]
    assert judge(right) != judge(others)


class Engine:
    """Answers every request with two tokens; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self.requests += requests
        return [
            Completion(
                tokens=np.array([8, 9], np.int32),
                logprobs=np.array([-1.0, -2.0], np.float32),
                versions=np.array([3, 3], np.int32),
                finish_reason="stop",
            )
            for _ in requests
        ]


def test_a_led_completion_holds_the_given_tokens_and_then_the_sampled_ones() -> None:
    engine = Engine()
    led = led_start.LedEngine(engine, np.array([5, 6, 7], np.int32))
    request = GenerateRequest(
        tokens=np.array([1, 2], np.int32), sampling=Sampling(max_tokens=10), seed=0
    )
    (completion,) = asyncio.run(led.generate([request]))
    assert completion.tokens.tolist() == [5, 6, 7, 8, 9]
    assert completion.logprobs.tolist() == [0.0, 0.0, 0.0, -1.0, -2.0]
    assert completion.versions.tolist() == [3] * 5
    assert engine.requests[0].tokens.tolist() == [1, 2, 5, 6, 7]
    assert engine.requests[0].sampling.max_tokens == 7  # of 10, 3 are given


def test_the_first_words_are_those_of_a_worked_example() -> None:
    import random

    from skyrl_tiny.teacher import Teacher

    example = Teacher(0, num_wrong=0).work_out(483, 7, random.Random(0))
    assert example.startswith(led_start.first_words("483 * 7"))


def test_a_run_stops_after_the_step_in_which_its_time_is_up(tmp_path: Any) -> None:
    time_limit.on_run_start(
        RunInfo(
            name="run",
            project="skyrl",
            folder=tmp_path,
            total_steps=9,
            start_step=0,
            config={"controls": {"time_limit": {"seconds": 1.0}}},
            plugins=[],
        )
    )
    step = StepInfo(step=1, total_steps=9, metrics={"timing/step": 0.4})
    time_limit.on_step_end(step)
    time_limit.on_step_end(step)
    with pytest.raises(StopRun, match=r"1\.2 s of training"):
        time_limit.on_step_end(step)  # 3 × 0.4 s ≥ 1 s
