"""Lengths, turns, endings and times of what was generated; cases marked SkyRL have its values."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.records import Group, Prompt, Reward, Segment, StopReason, Trajectory, Turn
from skyrl_kernel.rollout_metrics import (
    generation_metrics,
    group_time_metrics,
    length_metrics,
    merge_metrics,
)

PROMPT = Prompt(uid="p", messages=(), env_class="e")


def trajectory(
    *turns: tuple[int, float],
    reply: int = 0,
    rows: int = 1,
    prompt: int = 3,
    timings: Mapping[str, float] | None = None,
    env_metrics: Mapping[str, float] | None = None,
    stop_reason: StopReason = StopReason.STOP,
) -> Trajectory:
    """Turns of (tokens, reward) in one row, ``reply`` tokens between them; or a row for each."""
    places: list[Turn] = []
    segments: list[Segment] = []
    length = prompt
    for number, (count, reward) in enumerate(turns):
        row = number if rows > 1 else 0
        places.append(
            Turn(segment=row, start=length, stop=length + count, reward=reward, action="")
        )
        length += count
        if rows > 1:
            segments.append(segment(length, length - count))
        length += reply
    if rows == 1:
        segments.append(segment(length - (reply if turns else 0), prompt))
    return Trajectory(
        prompt=PROMPT,
        sample=0,
        segments=tuple(segments),
        turns=tuple(places),
        stop_reason=stop_reason,
        reward=Reward(turns=tuple(reward for _, reward in turns)),
        timings=timings or {},
        env_metrics=env_metrics or {},
    )


def segment(length: int, prompt: int) -> Segment:
    return Segment(
        tokens=np.ones(length, dtype=np.int32),
        num_prompt_tokens=prompt,
        loss_mask=np.arange(length) >= prompt,
    )


def group(*seconds: float, index: int = 0) -> Group:
    played = [trajectory((1, 0.0), timings={"total": one}) for one in seconds]
    return Group(index=index, prompt=PROMPT, trajectories=tuple(played))


def test_responses_hold_replies_and_the_policy_s_share_does_not() -> None:
    found = length_metrics(
        [
            trajectory((2, 0.0), (4, 1.0), reply=3),  # 9 tokens of response, 6 of the policy
            trajectory((5, 0.0)),
        ]
    )
    assert found == {
        "generate/min_num_tokens": 5,
        "generate/max_num_tokens": 9,
        "generate/avg_num_tokens": 7,
        "generate/std_num_tokens": 2,
        "generate/avg_tokens_non_zero_rewards": 9,
        "generate/avg_tokens_zero_rewards": 5,
        "generate/min_assistant_tokens": 5,
        "generate/max_assistant_tokens": 6,
        "generate/avg_assistant_tokens": 5.5,
        "generate/std_assistant_tokens": 0.5,
        "generate/tokens_per_turn_mean": pytest.approx(11 / 3),
        "generate/tokens_per_turn_std": pytest.approx(np.std([2, 4, 5])),
        "generate/tokens_per_turn_max": 5,
        "generate/turns_mean": 1.5,
        "generate/batch_num_seq": 2,
        "generate/batch_padded_seq_len": 12,  # 3 + 9
    }


def test_a_reward_below_zero_is_one_that_is_not_zero() -> None:
    found = length_metrics([trajectory((2, -1.0)), trajectory((4, 0.0)), trajectory((8, 1.0))])
    assert found["generate/avg_tokens_non_zero_rewards"] == 5
    assert found["generate/avg_tokens_zero_rewards"] == 4


def test_rows_of_turns_are_counted_one_by_one() -> None:
    one = trajectory((2, 0.0), (4, 1.0), reply=3, rows=2)  # rows of 3 + 2 and 8 + 4 tokens
    found = length_metrics([one, trajectory((5, 0.0))])
    assert found["generate/batch_num_seq"] == 3
    assert found["generate/batch_padded_seq_len"] == 12
    assert found["generate/max_num_tokens"] == 6  # the reply is in the second row's prompt
    assert generation_metrics([one])["policy/response_length"] == 4
    joined = trajectory((2, 0.0), (4, 1.0), reply=3)
    assert merge_metrics([joined, trajectory((5, 0.0))]) == {
        "generate/num_seq_before_merge": 3,
        "generate/num_seq_after_merge": 2,
    }


def test_seconds_of_a_trajectory_go_to_the_engine_the_env_and_the_rest() -> None:
    found = generation_metrics(
        [
            trajectory((1, 0.0), timings={"total": 10.0, "llm": 6.0, "env": 3.0}),
            trajectory((1, 0.0), timings={"total": 4.0, "llm": 1.0, "env": 1.0}),
        ]
    )
    seconds = {k: v for k, v in found.items() if "time" in k}
    assert seconds == {
        "generate/trajectory_time_completion_mean": 7.0,
        "generate/trajectory_time_completion_p90": pytest.approx(4 + 0.9 * 6),
        "generate/trajectory_time_completion_max": 10.0,
        "generate/trajectory_time_llm_mean": 3.5,
        "generate/trajectory_time_llm_p90": pytest.approx(1 + 0.9 * 5),
        "generate/trajectory_time_llm_max": 6.0,
        "generate/trajectory_time_env_mean": 2.0,
        "generate/trajectory_time_env_p90": pytest.approx(1 + 0.9 * 2),
        "generate/trajectory_time_env_max": 3.0,
        "generate/trajectory_time_other_mean": 1.5,
        "generate/trajectory_time_other_p90": pytest.approx(1 + 0.9),
        "generate/trajectory_time_other_max": 2.0,
    }


def test_a_group_takes_as_long_as_its_slowest_trajectory() -> None:
    found = group_time_metrics([group(1.0, 3.0), group(2.0, 2.0, 2.0, index=1), group(index=2)])
    assert found == {
        "generate/group_completion_time_mean": 2.5,
        "generate/group_completion_time_p90": pytest.approx(2.9),
        "generate/group_completion_time_max": 3.0,
        "generate/intra_group_completion_time_std_mean": 0.5,  # of 1 and 0
        "generate/intra_group_completion_time_cv_mean": 0.25,  # of 1/2 and 0
    }
    assert group_time_metrics([group()]) == {}


def test_endings_and_the_envs_numbers() -> None:
    found = generation_metrics(
        [
            trajectory((1, 0.0), env_metrics={"exact_match": 1.0}),
            trajectory((1, 0.0), env_metrics={"exact_match": 0.0, "steps": 2.0}),
            trajectory((1, 0.0)),
            trajectory((1, 0.0), stop_reason=StopReason.LENGTH),
        ]
    )
    assert (found["generate/stop_stop_frac"], found["generate/stop_length_frac"]) == (0.75, 0.25)
    assert found["environment/exact_match"] == 0.5  # of those that report it
    assert found["environment/steps"] == 2.0
    assert not any("time" in name for name in found)  # nobody took the time


def test_nothing_is_said_of_what_was_not_sampled() -> None:
    assert generation_metrics([trajectory()]) == {}
    assert generation_metrics([]) == {}


@given(st.lists(st.lists(st.floats(0.001, 99), min_size=1, max_size=5), min_size=1, max_size=5))
def test_group_times_are_numpys(groups: Sequence[Sequence[float]]) -> None:
    found = group_time_metrics([group(*seconds) for seconds in groups])
    spreads = [np.std(seconds) for seconds in groups]
    relative = [np.std(seconds) / np.mean(seconds) for seconds in groups]
    assert found["generate/intra_group_completion_time_std_mean"] == pytest.approx(
        np.mean(spreads), abs=1e-9
    )
    assert found["generate/intra_group_completion_time_cv_mean"] == pytest.approx(
        np.mean(relative), abs=1e-9
    )
    assert found["generate/group_completion_time_p90"] == pytest.approx(
        np.percentile([max(seconds) for seconds in groups], 90)
    )
