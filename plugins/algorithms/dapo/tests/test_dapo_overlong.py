"""The soft overlong punishment against numbers worked out by hand."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_dapo import penalty, with_penalty
from skyrl_kernel.records import Prompt, Reward, Segment, StopReason, Trajectory, Turn


def trajectory(*lengths: int) -> Trajectory:
    ends = np.cumsum((0, *lengths)).tolist()
    return Trajectory(
        prompt=Prompt(uid="p", messages=(), env_class="e"),
        sample=0,
        segments=(
            Segment(
                tokens=np.zeros(ends[-1], np.int32),
                num_prompt_tokens=0,
                loss_mask=np.ones(ends[-1], dtype=bool),
            ),
        ),
        turns=tuple(
            Turn(segment=0, start=start, stop=stop, reward=1.0, action="")
            for start, stop in itertools.pairwise(ends)
        ),
        stop_reason=StopReason.STOP,
    )


def env(trajectories: Sequence[Trajectory]) -> list[Reward]:
    return [
        Reward(turns=(1.0,) * len(one.turns), components={"env": float(len(one.turns))})
        for one in trajectories
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # the paper's: 20480 tokens, of which 4096 are the buffer
        (16384, 0),
        (17408, -0.25),  # 1024 of 4096
        (18432, -0.5),
        (20480, -1),
        (30000, -1),  # SkyRL sets the whole reward to 0 here
        (0, 0),
    ],
)
def test_the_punishment_by_hand(length: int, expected: float) -> None:
    assert penalty(length, limit=20480, buffer=4096, factor=1.0) == expected
    assert penalty(length, limit=20480, buffer=4096, factor=2.0) == 2 * expected


def test_it_is_a_component_of_the_last_turn_s_reward() -> None:
    judge = with_penalty(env, limit=8, buffer=4, factor=1.0)
    short, long = judge([trajectory(4), trajectory(7)])
    assert (short.turns, short.components) == ((1.0,), {"env": 1.0, "overlong_penalty": 0.0})
    assert long.turns == (0.25,)  # 3 of the buffer's 4 tokens
    assert long.components == {"env": 1.0, "overlong_penalty": -0.75}
    assert sum(long.components.values()) == long.total


def test_of_several_turns_the_longest_completion_counts() -> None:
    (reward,) = with_penalty(env, limit=8, buffer=4, factor=1.0)([trajectory(6, 2, 5)])
    assert reward.turns == (1.0, 1.0, 0.5)


def test_what_has_no_turns_earns_what_it_earned() -> None:
    (reward,) = with_penalty(env, limit=8, buffer=4, factor=1.0)([trajectory()])
    assert (reward.turns, reward.components) == ((), {"env": 0.0})


@given(st.integers(0, 200), st.integers(1, 100), st.integers(0, 99), st.floats(0, 10))
def test_a_longer_answer_never_earns_more(
    length: int, limit: int, below: int, factor: float
) -> None:
    buffer = max(limit - below, 1)
    now = penalty(length, limit, buffer, factor)
    assert -factor <= penalty(length + 1, limit, buffer, factor) <= now <= 0
