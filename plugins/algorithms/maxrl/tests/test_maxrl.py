"""MaxRL against numbers worked out by hand, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.protocols import Advantage
from skyrl_kernel.testing.contracts import AdvantageContract
from skyrl_kernel.testing.groups import judged_group
from skyrl_maxrl import advantage, relative_advantages

counts = st.tuples(st.integers(0, 8), st.integers(0, 8)).filter(lambda pair: sum(pair) > 1)
"""Successes and failures of a group."""
groups = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=8)


class TestMaxrl(AdvantageContract):
    equal_rewards_give_nothing = True

    def advantage(self) -> Advantage:
        stage = advantage("maxrl")
        assert stage is not None
        return stage


# --- worked numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([6, 3], [0.33333326, -0.33333326]),  # mean 4.5: ±1.5 / 4.500001
        ([9, 12], [-0.14285713, 0.14285713]),  # mean 10.5: ±1.5 / 10.500001
        ([1, 0, 0, 0], [2.999988, -0.999996, -0.999996, -0.999996]),  # mean ¼: ¾ / 0.250001
        ([5], [5]),  # a group of one
        ([0, 0], [0, 0]),  # nobody succeeded
        ([1, 1], [0, 0]),
        ([], []),
    ],
)
def test_advantages_by_hand(rewards: list[float], expected: list[float]) -> None:
    assert relative_advantages(rewards) == pytest.approx(expected, abs=1e-6)


def test_with_negative_rewards_better_stays_better() -> None:
    """SkyRL divides by the mean: -1 here, which credits the worse answer, and 0 below."""
    assert relative_advantages([1, -3]) == pytest.approx([1, -1], abs=1e-5)  # ±2 / 2
    assert relative_advantages([1, -1]) == pytest.approx([1, -1], abs=1e-5)  # ±1 / 1


def test_what_single_tokens_earned_counts_in_the_total() -> None:
    """A KL penalty in the reward; the first token is not trained on."""
    stage = advantage("maxrl")
    assert stage is not None
    fined, free = judged_group([[2.0], [3.0]])
    penalty = np.array([0, 0, -9, -0.5, -0.5], np.float32)
    fined = replace(fined, token_rewards=(penalty,))
    # totals 2 - 0.5 - 0.5 and 3, mean 2: ±1 / 2.000001
    for (row,), expected in zip(stage([[fined, free]])[0], [-0.5, 0.5], strict=True):
        assert row.advantages.tolist() == pytest.approx([0, 0, 0, expected, expected], abs=1e-5)


def test_another_name_is_not_answered() -> None:
    assert advantage("grpo") is None


# --- what must hold for any numbers ---------------------------------------------------


@given(counts)
def test_of_successes_and_failures_the_mean_success_rate_is_the_unit(pair: tuple[int, int]) -> None:
    right, wrong = pair
    got = relative_advantages([1.0] * right + [0.0] * wrong)
    if not right or not wrong:
        assert got == [0.0] * (right + wrong)
        return
    rate = right / (right + wrong)
    expected = [(1 - rate) / rate] * right + [-1.0] * wrong
    assert got == pytest.approx(expected, rel=1e-4)


@given(groups)
def test_advantages_sum_to_zero_and_are_bounded(rewards: list[float]) -> None:
    got = relative_advantages(rewards)
    assert sum(got) == pytest.approx(0, abs=1e-6)
    assert all(abs(one) <= len(rewards) + 1 for one in got)


@given(groups)
def test_higher_rewards_have_higher_advantages(rewards: list[float]) -> None:
    got = relative_advantages(rewards)
    order = sorted(range(len(rewards)), key=lambda i: rewards[i])
    assert [got[i] for i in order] == sorted(got)


@given(groups, st.floats(0.5, 100))
def test_the_unit_of_the_reward_does_not_matter(rewards: list[float], scale: float) -> None:
    scaled = [reward * scale for reward in rewards]
    # the least mean drawn is 1/8000, and half of it: there the 1e-6 beside it counts for 1 %
    expected = pytest.approx(relative_advantages(rewards), rel=2e-2, abs=1e-2)
    assert relative_advantages(scaled) == expected
