"""The control experiments change what they say they change, and nothing else."""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from skyrl_controls import (
    flipped_advantages,
    led_start,
    random_reward,
    shuffled_advantages,
    time_limit,
    train_on_replies,
)

from skyrl_kernel.batch import credit, training_samples
from skyrl_kernel.config import AlgorithmConfig, TrainerConfig
from skyrl_kernel.defaults.env_reward import env_reward
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.errors import ConfigError, StopRun
from skyrl_kernel.plan import make_plan
from skyrl_kernel.protocols import Advantage, RunInfo, StepInfo
from skyrl_kernel.records import (
    NOT_SAMPLED,
    Completion,
    GenerateRequest,
    Prompt,
    Reward,
    Sampling,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
    Turn,
)
from skyrl_kernel.rollout.checks import check_tokens
from skyrl_kernel.torch import objective, pack


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


# --- advantages that are wrong ------------------------------------------------------------


def batch(sizes: Sequence[int]) -> list[list[Scored]]:
    """Groups of so many trajectories, each with one trained token."""
    return [
        [
            Scored(trajectory=trajectory("train", uid=str(p), sample=i), scores=(Scores(),))
            for i in range(size)
        ]
        for p, size in enumerate(sizes)
    ]


def numbered(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Advantages 1, 2, 3, … of the trajectories of a batch; returns ten times as much."""
    values = iter(range(1, 1 + sum(map(len, groups))))
    mask = np.array([False, True])
    return [
        [
            (
                TokenAdvantages(
                    advantages=mask * np.float32(value),
                    loss_mask=mask,
                    returns=mask * np.float32(10 * value),
                ),
            )
            for _, value in zip(group, values, strict=False)
        ]
        for group in groups
    ]


def credited(wrapper: Generator[None, Any, Any], groups: list[list[Scored]]) -> list[list[float]]:
    """The advantage of each trajectory's trained token."""
    estimator = wrapped(wrapper, Advantage(fn=numbered))
    return [[rows[0].advantages[1] for rows in group] for group in estimator(groups)]


def test_the_sign_is_flipped_and_what_a_critic_learns_is_not() -> None:
    groups = batch([2, 1])
    assert credited(flipped_advantages.advantage(), groups) == [[-1.0, -2.0], [-3.0]]
    estimator = wrapped(flipped_advantages.advantage(), Advantage(fn=numbered))
    assert estimator(groups)[0][1][0].returns.tolist() == [0.0, 20.0]


def test_advantages_are_dealt_out_among_the_trajectories_of_the_batch() -> None:
    groups = batch([8, 8, 4])
    dealt = credited(shuffled_advantages.advantage(Settings()), groups)
    assert [len(group) for group in dealt] == [8, 8, 4]
    flat = [value for group in dealt for value in group]
    assert sorted(flat) == list(range(1, 21))  # each goes to one, and to another one
    assert flat != sorted(flat)
    assert credited(shuffled_advantages.advantage(Settings()), groups) == dealt
    others = credited(shuffled_advantages.advantage(Settings()), batch([8, 8, 5])[:2])
    assert others != dealt[:2]  # another batch, another deal


# --- training on what the env said --------------------------------------------------------

REPLIED = Segment(
    tokens=np.array([1, 2, 7, 8, 3, 4, 9, 5], np.int32),
    num_prompt_tokens=2,
    loss_mask=np.array([False, False, True, True, False, False, True, False]),
    logprobs=np.array([0, 0, -0.1, -0.7, 0, 0, -0.2, 0], np.float32),
    versions=np.array([-1, -1, 3, 3, -1, -1, 3, -1], np.int32),
)


def played(phase: str) -> Trajectory:
    """What the wrapper makes of a trajectory over two turns."""
    whole = replace(trajectory("train"), segments=(REPLIED,))

    async def inner(prompt: Prompt, context: Any) -> Trajectory:
        return whole

    class Recomputed:
        def __getitem__(self, section: type) -> Any:
            return AlgorithmConfig(recompute_old_logprobs=True)

    class Context:
        def __init__(self) -> None:
            self.phase = phase

    lying = wrapped(train_on_replies.generate(Recomputed()), inner)
    return asyncio.run(lying(whole.prompt, Context()))


def test_the_reply_between_two_answers_is_claimed_as_sampled_and_nothing_else() -> None:
    (segment,) = played("train").segments
    assert segment.loss_mask.tolist() == [False, False, True, True, True, True, True, False]
    assert segment.versions is not None
    assert segment.versions.tolist() == [-1, -1, 3, 3, 3, 3, 3, -1]
    assert check_tokens([played("train")]) is None  # so the kernel believes it
    assert played("eval").segments == (REPLIED,)


def test_unmasking_alone_is_refused_by_the_kernel() -> None:
    honest = replace(REPLIED, loss_mask=np.arange(8) >= 2)
    assert NOT_SAMPLED in honest.versions[honest.loss_mask]
    problems = check_tokens([replace(trajectory("train"), segments=(honest,))])
    assert problems is not None
    (problem,) = problems
    assert "marks tokens that no policy sampled" in str(problem)


def test_training_on_replies_needs_log_probs_that_nothing_sampled() -> None:
    class Default:
        def __getitem__(self, section: type) -> Any:
            return AlgorithmConfig()

    wrapper = train_on_replies.generate(Default())
    next(wrapper)
    with pytest.raises(ConfigError, match=r"set trainer\.algorithm\.recompute_old_logprobs=true"):
        wrapper.send(object())


def gradient_by_token(first: Segment, second: Segment) -> list[list[float]]:
    """d objective / d log-prob of every token, for a wrong and a right answer to one prompt."""
    plan = make_plan(["grpo"], overrides=["trainer.algorithm.use_kl_loss=false"])
    advantage, loss = (plan.stages[hook].value for hook in ("advantage", "loss"))
    scored = [
        Scored(
            trajectory=replace(
                trajectory("train", sample=sample), segments=(row,), reward=Reward(turns=(reward,))
            ),
            scores=(Scores(old_logprobs=np.full(len(row.tokens), -0.5, np.float32)),),
        )
        for sample, (row, reward) in enumerate([(first, 0.0), (second, 1.0)])
    ]
    samples = training_samples(credit(advantage, [scored], ()), token_mean, loss.coefficients)
    leaves = [torch.full((len(one.tokens),), -0.5, requires_grad=True) for one in samples]
    trained = [
        leaf[torch.from_numpy(one.loss_mask)] for leaf, one in zip(leaves, samples, strict=True)
    ]
    logprobs = torch.cat(trained)
    inputs, weights = pack(samples, logprobs, torch.zeros_like(logprobs), needs=loss.needs)
    objective(loss, inputs, weights)[0].backward()
    return [leaf.grad.tolist() for leaf in leaves if leaf.grad is not None]


def test_training_on_replies_is_caught_by_their_gradient_which_has_to_be_zero() -> None:
    untrained = ~REPLIED.loss_mask
    honest = np.array(gradient_by_token(REPLIED, REPLIED))
    assert (honest[:, untrained] == 0).all()  # exactly
    assert (honest[:, REPLIED.loss_mask] != 0).all()
    claimed = train_on_replies.all_claimed(REPLIED)
    lied = np.array(gradient_by_token(claimed, claimed))
    assert (lied[:, [4, 5]] != 0).all()  # the reply, ids 3 and 4
