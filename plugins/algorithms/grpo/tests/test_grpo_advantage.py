"""GRPO's advantage against numbers worked out by hand, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_grpo import group_advantages
from skyrl_grpo.advantage import advantage
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    Trajectory,
)

finite = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 3))
groups = st.lists(finite, min_size=2, max_size=8)


def judged(rewards: list[float], masks: list[list[bool]] | None = None, sample: int = 0) -> Scored:
    """A trajectory with one reward per turn, and one segment per mask."""
    masks = masks or [[False, True, True]]
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="0:0", messages=[], env_class="none"),
            sample=sample,
            segments=tuple(
                Segment(
                    tokens=np.arange(len(mask), dtype=np.int32),
                    num_prompt_tokens=1,
                    loss_mask=np.array(mask),
                )
                for mask in masks
            ),
            turns=(),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=tuple(rewards)),
        ),
        scores=(Scores(),) * len(masks),
    )


def credited(*groups: list[Scored], **config: bool) -> list[list[float]]:
    """The advantage of each trajectory, as the stage gives it to its trained tokens."""
    stage = advantage("grpo", {AlgorithmConfig: AlgorithmConfig(**config)})
    assert stage is not None
    result = []
    for group, entries in zip(groups, stage(groups), strict=True):
        values = []
        for one, (entry,) in zip(group, entries, strict=True):
            (segment,) = one.trajectory.segments
            assert entry.loss_mask is segment.loss_mask
            assert entry.advantages.dtype == np.float32
            (value,) = set(entry.advantages[segment.loss_mask].tolist())
            assert not entry.advantages[~segment.loss_mask].any()
            values.append(value)
        result.append(values)
    return result


# --- worked numbers -----------------------------------------------------------------


def test_rewards_of_turns_are_summed_and_centred_within_their_group() -> None:
    # group 1: totals 1+2+3 = 6 and 1+1+1 = 3, mean 4.5; group 2: totals 9 and 12, mean 10.5
    got = credited(
        [judged([1, 2, 3]), judged([1, 1, 1])],
        [judged([3, 3, 3]), judged([4, 4, 4])],
        grpo_norm_by_std=False,
    )
    assert got == [[1.5, -1.5], [-1.5, 1.5]]


def test_the_spread_is_the_sample_standard_deviation() -> None:
    # totals 6, 3: deviations ±1.5, std = sqrt((1.5² + 1.5²) / 1) = 2.12132, 1.5 / 2.12132 = 0.70711
    got = credited([judged([6]), judged([3])], [judged([9]), judged([12])])
    assert got[0] == pytest.approx([0.7071064, -0.7071064], abs=1e-6)
    assert got[1] == pytest.approx([-0.7071064, 0.7071064], abs=1e-6)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        # mean ½, std sqrt(4 × ¼ / 3) = 0.577350: 0.5 / 0.577351 (population std would give 1)
        ([1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]),
        # mean ¾, std sqrt((3/16 + 9/16) / 3) = ½: ¼ / 0.500001 and -¾ / 0.500001
        ([1, 1, 1, 0], [0.499999, 0.499999, 0.499999, -1.499997]),
        # all equal
        ([1, 1, 1, 1], [0, 0, 0, 0]),
        # a group of one: mean 0 and std 1 by definition, 5 / 1.000001
        ([5], [4.999995]),
    ],
)
def test_advantages_by_hand(rewards: list[float], expected: list[float]) -> None:
    assert group_advantages(rewards) == pytest.approx(expected, abs=1e-6)


def test_a_group_of_one_keeps_its_reward_where_nothing_is_normalised() -> None:
    assert group_advantages([5.0], normalize_std=False) == [5.0]


def test_a_trajectory_alone_has_what_its_turns_earned() -> None:
    """SkyRL's case of one row; its returns, equal to the advantages, nobody reads, so there are none."""
    assert credited([judged([1, 2, 3])]) == [[pytest.approx(6 / 1.000001)]]
    stage = advantage("grpo", {AlgorithmConfig: AlgorithmConfig()})
    assert stage is not None
    (((entry,),),) = stage([[judged([1, 2, 3])]])
    assert entry.returns is None


def test_every_trained_token_of_every_segment_has_its_trajectory_s_advantage() -> None:
    two = [[False, True, False, True], [False, False, True]]
    stage = advantage("grpo", {AlgorithmConfig: AlgorithmConfig(grpo_norm_by_std=False)})
    assert stage is not None
    ((first, second),) = stage([[judged([2], two), judged([0])]])
    assert [entry.advantages.tolist() for entry in first] == [[0, 1, 0, 1], [0, 0, 1]]
    assert [entry.advantages.tolist() for entry in second] == [[0, -1, -1]]


def test_what_single_tokens_earned_counts_in_the_total() -> None:
    # totals 2 - 0.5 - 0.5 and 0: a KL penalty in the reward. The first token is not trained on
    stage = advantage("grpo", {AlgorithmConfig: AlgorithmConfig(grpo_norm_by_std=False)})
    assert stage is not None
    paid = replace(judged([2]), token_rewards=(np.array([-9, -0.5, -0.5], np.float32),))
    ((first, second),) = stage([[paid, judged([0])]])
    assert [row.advantages.tolist() for row in (*first, *second)] == [
        [0, 0.5, 0.5],
        [0, -0.5, -0.5],
    ]


def test_a_group_that_lost_every_trajectory_gives_nothing() -> None:
    assert credited([], [judged([1]), judged([1])]) == [[], [0.0, 0.0]]


def test_another_name_is_not_answered() -> None:
    assert advantage("rloo", {AlgorithmConfig: AlgorithmConfig()}) is None


def test_grpo_asks_for_no_scores() -> None:
    stage = advantage("grpo", {AlgorithmConfig: AlgorithmConfig()})
    assert stage is not None
    assert stage.needs == frozenset()


# --- what must not change it ----------------------------------------------------------


@given(groups, st.booleans())
def test_advantages_of_a_group_sum_to_zero(rewards: list[float], normalize_std: bool) -> None:
    got = group_advantages(rewards, normalize_std=normalize_std)
    assert sum(got) == pytest.approx(0, abs=1e-6)


@given(groups, finite, st.booleans())
def test_a_reward_that_everybody_gets_changes_nothing(
    rewards: list[float], shift: float, normalize_std: bool
) -> None:
    shifted = [reward + shift for reward in rewards]
    assert group_advantages(shifted, normalize_std=normalize_std) == pytest.approx(
        group_advantages(rewards, normalize_std=normalize_std), abs=1e-5
    )


@given(groups, st.floats(0.5, 100))
def test_the_unit_of_the_reward_does_not_matter_when_normalised(
    rewards: list[float], scale: float
) -> None:
    scaled = [reward * scale for reward in rewards]
    # up to the 1e-6 beside the standard deviation, which is at least 3.5e-4 here
    assert group_advantages(scaled) == pytest.approx(group_advantages(rewards), rel=1e-2)


@given(groups, st.randoms(use_true_random=False))
def test_the_order_of_trajectories_does_not_matter(rewards: list[float], rng) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rewards)))
    rng.shuffle(order)
    got = group_advantages([rewards[i] for i in order])
    assert got == pytest.approx([group_advantages(rewards)[i] for i in order], abs=1e-9)


@given(groups)
def test_higher_rewards_have_higher_advantages(rewards: list[float]) -> None:
    got = group_advantages(rewards)
    assert all(
        got[i] < got[j]
        for i in range(len(rewards))
        for j in range(len(rewards))
        if rewards[i] < rewards[j]
    )


@given(st.floats(-1e6, 1e6), st.integers(2, 16), st.booleans())
def test_equal_rewards_have_no_advantage(reward: float, count: int, normalize_std: bool) -> None:
    got = group_advantages([reward] * count, normalize_std=normalize_std)
    assert got == [0.0] * count


def test_rewards_that_differ_by_rounding_only_give_no_signal() -> None:
    # 0.1 + 0.2 is not 0.3; std 3.9e-17 is nothing beside 1e-6
    assert group_advantages([0.1 + 0.2, 0.3]) == pytest.approx([0, 0], abs=1e-9)
