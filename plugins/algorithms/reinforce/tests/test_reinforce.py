"""REINFORCE++ against numbers worked out by hand, and what must not change it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.batch import credit
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.errors import HookError
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)
from skyrl_kernel.testing.contracts import AdvantageContract
from skyrl_reinforce import baseline, centred, returns, token_returns, whitened

rewards = st.lists(
    st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=4), min_size=1, max_size=4
)
"""Of the trajectories of groups."""


def stage(name: str, **config: Any) -> Advantage:
    settings = {AlgorithmConfig: AlgorithmConfig(**config)}
    made = returns.advantage(name, settings) or baseline.advantage(name)
    assert made is not None
    return made


def played(
    mask: Sequence[int],
    *turns: tuple[int, float],
    token_rewards: Sequence[float] = (),
    rows: int = 1,
) -> Scored:
    """A trajectory whose turns end before the given places and earned the given rewards."""
    segment = Segment(
        tokens=np.zeros(len(mask), np.int32),
        num_prompt_tokens=0,
        loss_mask=np.array(mask, dtype=bool),
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="p", messages=(), env_class="any"),
            sample=0,
            segments=(segment,) * rows,
            turns=tuple(
                Turn(segment=0, start=0, stop=stop, reward=reward, action="")
                for stop, reward in turns
            ),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=tuple(reward for _, reward in turns)),
        ),
        scores=(Scores(),) * rows,
        token_rewards=(np.array(token_rewards, np.float32),) if token_rewards else (),
    )


def advantages(stage: Advantage, groups: Sequence[Sequence[Scored]]) -> list[list[float]]:
    """Of each trajectory's first row."""
    return [entries[0].advantages.tolist() for group in stage(groups) for entries in group]


class TestReinforce(AdvantageContract):
    ignores_reward_shift = True

    def advantage(self) -> Advantage:
        return stage("reinforce++")


class TestDiscounted(AdvantageContract):
    def advantage(self) -> Advantage:
        return stage("reinforce++", gamma=0.9)


class TestBaseline(AdvantageContract):
    ignores_reward_shift = True

    def advantage(self) -> Advantage:
        return stage("reinforce++_baseline")


# --- worked numbers -----------------------------------------------------------------


def test_what_comes_later_counts_for_the_tokens_before_it() -> None:
    # 1 + 2 + 3, 2 + 3, 3
    mask = np.ones(3, dtype=bool)
    assert token_returns(np.array([1, 2, 3], np.float32), mask).tolist() == [6, 5, 3]
    # 1 + ½ (2 + ½ · 3)
    assert token_returns(np.array([1, 2, 3], np.float32), mask, 0.5).tolist() == [2.75, 3.5, 3]


def test_masked_tokens_are_stepped_over_and_what_they_earned_counts_before_them() -> None:
    """SkyRL begins anew after a masked token: 3 and 2 here.

    There, a reward after an env's reply never reaches the turns before it. Of two
    numbers that differ by 1 the normalised ones are the same: SkyRL's ±0.70711.
    """
    mask = np.array([True, True, False])
    got = token_returns(np.array([1, 2, 3], np.float32), mask)
    assert got.tolist() == [6, 5]
    # mean 5.5, sample variance ½: ±½ / sqrt(½)
    assert whitened([got])[0].tolist() == pytest.approx([0.70711, -0.70711], abs=1e-5)


def test_a_later_turn_s_reward_reaches_the_first() -> None:
    two_turns = played([0, 1, 1, 0, 1], (3, 0.0), (5, 1.0))
    (row,) = advantages(stage("reinforce++", gamma=0.5), [[two_turns]])
    # returns ¼, ½ and 1: mean 0.58333, sample variance 0.14583
    expected = [(x - 0.583333) / 0.381881 for x in (0.25, 0.5, 1.0)]
    assert row == pytest.approx([0, *expected[:2], 0, expected[2]], abs=1e-5)


def test_what_an_empty_first_turn_earned_counts_for_the_first_trained_token() -> None:
    """The kernel puts it on the prompt's last token; with GAE it reaches the same place."""
    got = token_returns(np.array([1, 0, 0, 2], np.float32), np.array([False, False, True, True]))
    assert got.tolist() == [3, 2]
    empty_then_one = played([0, 0, 1, 1], (2, 5.0), (4, 1.0))
    other = played([0, 0, 1, 1], (2, 0.0), (4, 6.0))
    first, second = advantages(stage("reinforce++", gamma=1.0), [[empty_then_one, other]])
    # returns 6, 1 and 6, 6
    assert first == pytest.approx([0, 0, 0.5, -1.5])
    assert second == pytest.approx([0, 0, 0.5, 0.5])


def test_rewards_of_tokens_count_from_their_token_back() -> None:
    # reward 1 at the end; the KL took 0.5 from the first token and 0.25 from the second
    one = played([1, 1], (2, 1.0), token_rewards=[-0.5, -0.25])
    (row,) = advantages(stage("reinforce++"), [[one]])
    # returns 0.25 and 0.75
    assert row == pytest.approx([-0.70711, 0.70711], abs=1e-5)


def test_normalisation_is_over_the_tokens_of_the_whole_batch() -> None:
    long, short = played([1, 1, 1], (3, 0.0)), played([1], (1, 1.0))
    got = advantages(stage("reinforce++"), [[long], [short]])
    # 0, 0, 0, 1: mean ¼, sample variance (3 · 1/16 + 9/16) / 3 = ¼
    assert got == [pytest.approx([-0.5] * 3), pytest.approx([1.5])]


def test_the_baseline_is_the_group_s_mean_and_the_spread_the_batch_s() -> None:
    groups = [
        [played([1], (1, 1.0)), played([1], (1, 0.0))],
        [played([1], (1, 4.0)), played([1], (1, 1.0))],
    ]
    got = advantages(stage("reinforce++_baseline"), groups)
    # centred ±½ and ±1.5: mean 0, sample variance (2 · ¼ + 2 · 2.25) / 3 = 5/3
    unit = (5 / 3) ** -0.5
    assert [row[0] for row in got] == pytest.approx(
        [0.5 * unit, -0.5 * unit, 1.5 * unit, -1.5 * unit], abs=1e-5
    )


def test_the_baseline_s_normalisation_counts_trained_tokens_only() -> None:
    # two trained tokens of a long row against one of a short one: ½, ½, -½
    long, short = played([0, 0, 0, 1, 1], (5, 1.0)), played([1], (1, 0.0))
    got = advantages(stage("reinforce++_baseline"), [[long, short]])
    # mean 1/6, sample variance (2 · 1/9 + 4/9) / 2 = 1/3
    unit = 3**0.5
    assert got == [
        pytest.approx([0, 0, 0, unit / 3, unit / 3], abs=1e-6),
        pytest.approx([-2 * unit / 3], abs=1e-6),
    ]


def test_kl_in_the_reward_counts_in_an_answer_s_total() -> None:
    paid = played([1, 1], (2, 1.0), token_rewards=[-0.5, -0.5])
    free = played([1, 1], (2, 0.0))
    for row in advantages(stage("reinforce++_baseline"), [[paid, free]]):
        assert row == [0, 0]  # 1 - 1 and 0


def test_a_group_of_one_is_compared_with_zero() -> None:
    assert centred([5.0]).tolist() == [5]


# --- extremes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reinforce++", "reinforce++_baseline"])
def test_one_trained_token_and_none_at_all_give_nothing(name: str) -> None:
    """SkyRL raises: the variance of fewer than two numbers is undefined."""
    assert advantages(stage(name), [[played([0, 1], (2, 1.0))]]) == [[0, 0]]
    assert advantages(stage(name), [[played([0, 0], (2, 1.0))]]) == [[0, 0]]


def test_several_rows_are_refused_where_credit_flows_along_one() -> None:
    with pytest.raises(HookError, match=r"has 2 token rows.*use another"):
        credit(stage("reinforce++"), [[played([1], (1, 1.0), rows=2)]], masked=())
    credit(stage("reinforce++_baseline"), [[played([1], (1, 1.0), rows=2)]], masked=())


def test_other_names_are_not_answered() -> None:
    assert returns.advantage("reinforce++_baseline", {}) is None
    assert baseline.advantage("reinforce++") is None


# --- what must hold for any numbers ---------------------------------------------------


def batch(drawn: list[list[float]], shift: float = 0.0) -> list[list[Scored]]:
    return [
        [played([1] * (1 + i % 3), (1 + i % 3, one + shift)) for i, one in enumerate(group)]
        for group in drawn
    ]


@given(rewards, st.sampled_from(["reinforce++", "reinforce++_baseline"]))
def test_the_batch_s_tokens_have_mean_0_and_variance_1(drawn: list[list[float]], name: str) -> None:
    flat = np.concatenate(advantages(stage(name), batch(drawn)))
    assert flat.mean() == pytest.approx(0, abs=1e-5)
    if flat.any():
        assert flat.var(ddof=1) == pytest.approx(1, abs=1e-4)


@given(rewards, st.integers(-9, 9))
def test_a_reward_that_everybody_gets_changes_nothing(
    drawn: list[list[float]], shift: float
) -> None:
    straight = advantages(stage("reinforce++"), batch(drawn))
    for one, two in zip(
        straight, advantages(stage("reinforce++"), batch(drawn, shift)), strict=True
    ):
        assert one == pytest.approx(two, abs=1e-5)


@given(st.integers(-9, 9), st.integers(1, 6))
def test_equal_rewards_have_no_advantage(reward: float, count: int) -> None:
    for name in ("reinforce++", "reinforce++_baseline"):
        for row in advantages(stage(name), batch([[reward + 0.1] * (count + 1)])):
            assert not any(row)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0.1, 1))
def test_returns_are_the_discounted_sums(drawn: list[float], gamma: float) -> None:
    values = np.array(drawn, np.float32)
    got = token_returns(values, np.ones(len(values), dtype=bool), gamma)
    expected = [
        sum(gamma**k * float(one) for k, one in enumerate(values[i:])) for i in range(len(values))
    ]
    assert got.tolist() == pytest.approx(expected, abs=1e-6)
