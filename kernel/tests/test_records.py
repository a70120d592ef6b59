"""Records check what their fields promise each other."""

import dataclasses
import pickle

import numpy as np
import pytest

from skyrl_kernel import errors, records
from skyrl_kernel.records import (
    NOT_SAMPLED,
    Prompt,
    Reward,
    Scored,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


def segment(**changes: object) -> Segment:
    fields = {
        "tokens": np.array([1, 2, 7, 8], dtype=np.int32),
        "num_prompt_tokens": 2,
        "loss_mask": np.array([False, False, True, True]),
        "logprobs": np.zeros(4, dtype=np.float32),
        "versions": np.array([NOT_SAMPLED, NOT_SAMPLED, 3, 2], dtype=np.int32),
    }
    return Segment(**(fields | changes))


def trajectory(*segments: Segment) -> Trajectory:
    return Trajectory(
        prompt=Prompt(uid="0:7", messages=(), env_class="e"),
        sample=2,
        segments=segments,
        turns=(
            Turn(segment=0, start=2, stop=4, reward=0.5, action="a"),
            Turn(segment=1, start=2, stop=3, reward=1.0, action="b"),
        ),
        stop_reason=StopReason.STOP,
    )


def test_the_worked_example_of_a_two_turn_row_is_a_segment() -> None:
    Segment(
        tokens=np.array([1, 2, 7, 8, 3, 4, 9], dtype=np.int32),
        num_prompt_tokens=2,
        loss_mask=np.array([0, 0, 1, 1, 0, 0, 1], dtype=bool),
        logprobs=np.array([0, 0, -0.1, -0.7, 0, 0, -0.2], dtype=np.float32),
        versions=np.array([-1, -1, 0, 0, -1, -1, 0], dtype=np.int32),
    )


@pytest.mark.parametrize("name", ["loss_mask", "logprobs", "versions"])
def test_arrays_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has 3 entries for 4 tokens"):
        segment(**{name: np.zeros(3)})


def test_a_prompt_longer_than_its_row_is_refused() -> None:
    with pytest.raises(ValueError, match="num_prompt_tokens is 5, the row has 4"):
        segment(num_prompt_tokens=5)


def test_log_probs_and_versions_come_together() -> None:
    with pytest.raises(ValueError, match="both or neither"):
        segment(versions=None)
    segment(versions=None, logprobs=None)


def test_the_version_of_a_trajectory_is_that_of_its_oldest_token() -> None:
    newer = segment(versions=np.array([-1, -1, 9, 9], dtype=np.int32))
    unsampled = segment(versions=None, logprobs=None)
    nothing = segment(versions=np.full(4, NOT_SAMPLED, dtype=np.int32))
    assert trajectory(newer, segment()).version == 2
    assert trajectory(newer, unsampled, nothing).version == 9
    assert trajectory(unsampled, nothing).version is None


def test_a_trajectory_is_named_by_prompt_and_sample_and_counts_what_was_sampled() -> None:
    one = trajectory(segment(), segment())
    assert (one.id, one.num_completion_tokens) == ("0:7/2", 3)


def test_the_total_of_a_reward_is_the_sum_of_its_turns() -> None:
    assert Reward(turns=(0.25, 0.5), components={"a": 9.0}).total == 0.75
    assert Reward(turns=()).total == 0.0


def test_every_record_is_keyword_only_frozen_and_documented() -> None:
    found = [
        value
        for value in vars(records).values()
        if dataclasses.is_dataclass(value) and value.__module__ == records.__name__
    ]
    assert len(found) > 12
    for record in found:
        assert record.__dataclass_params__.frozen, record
        assert all(field.kw_only for field in dataclasses.fields(record)), record
        assert record.__doc__


def test_every_error_survives_pickling() -> None:
    made = {
        errors.TrajectoryError: errors.TrajectoryError(errors.FailureKind.TASK, "what", "multiply"),
        errors.PluginError: errors.PluginError("p", "skyrl-p 1", "loss", 3, "controller", "E: x"),
    }
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SkyrlError)
    ]
    for kind in kinds:
        error = made.get(kind) or kind("a message")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.RunError("x"), 1),
        (errors.StopRun("x"), 0),
    ],
)
def test_errors_know_their_exit_code(error: errors.SkyrlError, code: int) -> None:
    assert error.exit_code == code


def test_rewards_stand_on_the_last_token_of_their_turn_beside_those_of_tokens() -> None:
    judged = trajectory(segment(), segment()).judged(Reward(turns=(0.5, 1.0)))
    plain = Scored(trajectory=judged, scores=())
    assert [row.tolist() for row in plain.rewards_by_token()] == [[0, 0, 0, 0.5], [0, 0, 1, 0]]
    assert plain.total_reward == 1.5

    penalties = (np.full(4, -0.25, np.float32), np.zeros(4, np.float32))
    fined = dataclasses.replace(plain, token_rewards=penalties)
    rows = [row.tolist() for row in fined.rewards_by_token()]
    assert rows == [[0, 0, -0.25, 0.25], [0, 0, 1, 0]]  # prompt tokens pay nothing
    assert fined.total_reward == 1.0


def test_the_reward_of_a_turn_without_tokens_stands_on_the_token_before_it() -> None:
    one = dataclasses.replace(
        trajectory(segment()),
        turns=(Turn(segment=0, start=4, stop=4, reward=2.0, action=""),),
        reward=Reward(turns=(2.0,)),
    )
    (row,) = Scored(trajectory=one, scores=()).rewards_by_token()
    assert row.tolist() == [0, 0, 0, 2.0]


def test_a_plugin_error_says_who_where_and_what_in_one_line() -> None:
    error = errors.PluginError("grpo", "skyrl-grpo 1.0", "loss", 3, "controller", "KeyError: 'a'")
    assert str(error) == (
        "plugin 'grpo' (skyrl-grpo 1.0) failed in hook 'loss', step 3, process controller: "
        "KeyError: 'a'"
    )


def test_an_error_of_another_process_is_told_with_the_step_that_only_the_controller_knows() -> None:
    error = errors.PluginError("grpo", "skyrl-grpo 1.0", "loss", None, "trainer rank 1", "E: x")
    assert "start-up" in str(error)
    assert "step 3, process trainer rank 1" in str(error.in_step(3))
    assert str(error.in_step(3).in_step(4)) == str(error.in_step(3))
