import dataclasses

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.credited import Credited
from skyrl_kernel.records import (
    Group,
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
    Turn,
)
from skyrl_kernel.run.trajectory_file import read_trajectories, schema, write_trajectories

PROMPT = Prompt(
    uid="7",
    messages=[{"role": "user", "content": "6 * 7"}],
    env_class="multiply",
    data_source="made/up",
)

TWO_TURNS = Trajectory(
    prompt=PROMPT,
    sample=1,
    segments=(
        Segment(
            tokens=np.array([1, 2, 7, 8, 3, 4, 9], np.int32),
            num_prompt_tokens=2,
            loss_mask=np.array([0, 0, 1, 1, 0, 0, 1], bool),
            logprobs=np.array([0, 0, -0.1, -0.7, 0, 0, -0.2], np.float32),
            versions=np.array([-1, -1, 0, 0, -1, -1, 3], np.int32),
        ),
    ),
    turns=(
        Turn(segment=0, start=2, stop=4, reward=0.0, action="41", metadata={"tried": [41]}),
        Turn(segment=0, start=6, stop=7, reward=1.0, action="4²\n2"),
    ),
    stop_reason=StopReason.STOP,
    reward=Reward(turns=(0.0, 1.0), components={"env": 1.0}),
    env_metrics={"exact_match": 1.0},
    timings={"llm": 0.25},
)

NOT_SAMPLED = Trajectory(
    prompt=dataclasses.replace(PROMPT, data_source=None),
    sample=0,
    segments=(
        Segment(
            tokens=np.array([5, 6], np.int32), num_prompt_tokens=1, loss_mask=np.array([0, 1], bool)
        ),
    ),
    turns=(),
    stop_reason=StopReason.STOP,
)

GROUP = Group(index=12, prompt=PROMPT, trajectories=(NOT_SAMPLED, TWO_TURNS))


def test_a_trajectory_comes_back_as_a_dict_with_everything_in_it(tmp_path):
    path = tmp_path / "trajectories" / "step_3.parquet"
    write_trajectories(path, [GROUP])
    _, row = read_trajectories(path)
    assert row == {
        "uid": "7",
        "sample": 1,
        "group": 12,
        "data_source": "made/up",
        "env_class": "multiply",
        "messages": [{"role": "user", "content": "6 * 7"}],
        "stop_reason": "stop",
        "reward": 1.0,
        "turn_rewards": [0.0, 1.0],
        "reward_components": {"env": 1.0},
        "turns": [
            {"segment": 0, "start": 2, "stop": 4, "reward": 0.0, "action": "41",
             "metadata": {"tried": [41]}},
            {"segment": 0, "start": 6, "stop": 7, "reward": 1.0, "action": "4²\n2",
             "metadata": {}},
        ],
        "segments": [
            {
                "tokens": [1, 2, 7, 8, 3, 4, 9],
                "num_prompt_tokens": 2,
                "loss_mask": [False, False, True, True, False, False, True],
                "logprobs": [float(np.float32(x)) for x in (0, 0, -0.1, -0.7, 0, 0, -0.2)],
                "versions": [-1, -1, 0, 0, -1, -1, 3],
                "old_logprobs": None, "ref_logprobs": None, "values": None,
                "advantages": None, "returns": None,
            }
        ],
        "env_metrics": {"exact_match": 1.0},
        "timings": {"llm": 0.25},
    }  # fmt: skip


def test_what_was_trained_on_comes_with_its_scores_advantages_and_mask(tmp_path):
    (segment,) = TWO_TURNS.segments
    (prompt_only,) = NOT_SAMPLED.segments
    ref = np.linspace(-1, 0, 7, dtype=np.float32)
    mask = np.array([0, 0, 1, 0, 0, 0, 1], bool)  # one token less than was sampled
    credited = [
        [
            (
                Scored(trajectory=NOT_SAMPLED, scores=(Scores(),)),
                (TokenAdvantages(advantages=np.ones(2), loss_mask=prompt_only.loss_mask),),
            ),
            (
                Scored(
                    trajectory=TWO_TURNS,
                    scores=(Scores(old_logprobs=segment.logprobs, ref_logprobs=ref),),
                ),
                (TokenAdvantages(advantages=mask * np.float32(-0.5), loss_mask=mask),),
            ),
        ]
    ]
    path = tmp_path / "step_1.parquet"
    write_trajectories(path, [GROUP], Credited(credited))
    (first,), (second,) = [row["segments"] for row in read_trajectories(path)]
    assert (first["advantages"], first["old_logprobs"], first["ref_logprobs"]) == (
        [1, 1],
        None,
        None,
    )
    assert second["advantages"] == [0, 0, -0.5, 0, 0, 0, -0.5]
    assert second["loss_mask"] == mask.tolist()
    assert second["ref_logprobs"] == ref.tolist()
    assert second["old_logprobs"] is None, "they are the sampler's own"
    assert second["versions"] == [-1, -1, 0, 0, -1, -1, 3], "what was sampled is still told"


def test_what_was_neither_sampled_nor_judged_is_null(tmp_path):
    path = tmp_path / "step_1.parquet"
    write_trajectories(path, [GROUP])
    row, _ = read_trajectories(path)
    assert (row["reward"], row["turn_rewards"], row["data_source"]) == (None, None, None)
    assert (row["reward_components"], row["turns"]) == ({}, [])
    segment = row["segments"][0]
    assert (segment["tokens"], segment["logprobs"], segment["versions"]) == ([5, 6], None, None)


def test_a_reward_of_zero_is_not_null(tmp_path):
    path = tmp_path / "step_1.parquet"
    judged = dataclasses.replace(TWO_TURNS, reward=Reward(turns=(0.0,), components={"env": 0.0}))
    write_trajectories(path, [dataclasses.replace(GROUP, trajectories=(judged,))])
    (row,) = read_trajectories(path)
    assert row["reward"] == 0.0


def test_the_same_content_makes_the_same_bytes_and_timings_can_be_left_out(tmp_path):
    slower = dataclasses.replace(TWO_TURNS, timings={"llm": 9.0})
    reordered = dataclasses.replace(TWO_TURNS, env_metrics={"b": 2.0, "a": 1.0})
    ordered = dataclasses.replace(TWO_TURNS, env_metrics={"a": 1.0, "b": 2.0})
    paths = {}
    for name, trajectory in {
        "one": TWO_TURNS, "again": TWO_TURNS, "slower": slower, "ab": ordered, "ba": reordered
    }.items():  # fmt: skip
        paths[name] = tmp_path / f"{name}.parquet"
        write_trajectories(paths[name], [Group(index=0, prompt=PROMPT, trajectories=(trajectory,))])
    assert paths["one"].read_bytes() == paths["again"].read_bytes()
    assert paths["ab"].read_bytes() == paths["ba"].read_bytes()
    assert read_trajectories(paths["one"]) != read_trajectories(paths["slower"])
    without = [read_trajectories(paths[name], timings=False) for name in ("one", "slower")]
    assert without[0] == without[1]


def test_a_step_without_trajectories_is_a_file_without_rows(tmp_path):
    path = tmp_path / "step_1.parquet"
    write_trajectories(path, [])
    assert read_trajectories(path) == []
    assert pq.read_schema(path).equals(schema())


def test_text_that_utf8_cannot_hold_does_not_stop_the_run(tmp_path):
    path = tmp_path / "step_1.parquet"
    turn = dataclasses.replace(TWO_TURNS.turns[0], action="a\ud800b", metadata={"x": "\udfff"})
    odd = dataclasses.replace(TWO_TURNS, turns=(turn,))
    write_trajectories(path, [Group(index=0, prompt=PROMPT, trajectories=(odd,))])
    (row,) = read_trajectories(path)
    assert row["turns"][0]["action"] == "a?b"
    assert row["turns"][0]["metadata"] == {"x": "?"}


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    length = draw(st.integers(0, 6))
    sampled = draw(st.booleans())
    numbers = st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)
    floats = st.lists(st.floats(width=32, allow_nan=False), min_size=length, max_size=length)
    return Segment(
        tokens=np.array(draw(numbers), np.int32),
        num_prompt_tokens=draw(st.integers(0, length)),
        loss_mask=np.array(draw(numbers), np.int64) % 2 == 1,
        logprobs=np.array(draw(floats), np.float32) if sampled else None,
        versions=np.array(draw(numbers), np.int32) if sampled else None,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(segments(), max_size=3), max_size=4))
def test_any_ragged_segments_come_back(tmp_path_factory, ragged):
    path = tmp_path_factory.mktemp("t") / "step_1.parquet"
    trajectories = tuple(
        dataclasses.replace(NOT_SAMPLED, sample=i, segments=tuple(row))
        for i, row in enumerate(ragged)
    )
    write_trajectories(path, [Group(index=0, prompt=PROMPT, trajectories=trajectories)])
    for trajectory, row in zip(trajectories, read_trajectories(path), strict=True):
        for segment, back in zip(trajectory.segments, row["segments"], strict=True):
            assert back["num_prompt_tokens"] == segment.num_prompt_tokens
            for name in ("tokens", "loss_mask", "logprobs", "versions"):
                value = getattr(segment, name)
                assert back[name] == (None if value is None else value.tolist())
