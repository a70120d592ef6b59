"""RLOO against numbers worked out by hand, and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.config import AlgorithmConfig, GeneratorConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.testing.contracts import AdvantageContract
from skyrl_kernel.testing.groups import judged_group
from skyrl_rloo import advantage, leave_one_out

finite = st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 3))
groups = st.lists(finite, min_size=2, max_size=8)


def made(samples: int = 5) -> Advantage | None:
    generator = GeneratorConfig(n_samples_per_prompt=samples)
    return advantage("rloo", {AlgorithmConfig: AlgorithmConfig(), GeneratorConfig: generator})


class TestRloo(AdvantageContract):
    ignores_reward_shift = True
    equal_rewards_give_nothing = True

    def advantage(self) -> Advantage:
        stage = made()
        assert stage is not None
        return stage


# --- worked numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([6, 3], [3, -3]),  # 6 - 3 and 3 - 6
        ([9, 12], [-3, 3]),
        ([1], [0]),  # there is no other
        ([], []),
        # 1 - (0 + 0 + 1) / 3 and 0 - (1 + 0 + 1) / 3
        ([1, 0, 0, 1], [0.666667, -0.666667, -0.666667, 0.666667]),
        ([1e4, -1e4], [2e4, -2e4]),
    ],
)
def test_advantages_by_hand(rewards: list[float], expected: list[float]) -> None:
    assert leave_one_out(rewards) == pytest.approx(expected, abs=1e-6)


def test_one_answer_per_prompt_is_refused() -> None:
    """SkyRL warns, and trains on zeros."""
    with pytest.raises(ConfigError, match=r"n_samples_per_prompt=1 asks for one; set it to 2"):
        made(samples=1)


def test_what_single_tokens_earned_counts_in_the_total() -> None:
    """A KL penalty in the reward; the first token is not trained on."""
    stage = made()
    assert stage is not None
    fined, free = judged_group([[2.0], [0.0]])
    penalty = np.array([0, 0, -9, -0.5, -0.5], np.float32)
    fined = replace(fined, token_rewards=(penalty,))
    # totals 2 - 0.5 - 0.5 and 0: ±1
    for (row,), expected in zip(stage([[fined, free]])[0], [1, -1], strict=True):
        assert row.advantages.tolist() == pytest.approx([0, 0, 0, expected, expected], abs=1e-5)


def test_another_name_is_not_answered() -> None:
    assert advantage("grpo", {}) is None


# --- what must hold for any numbers ---------------------------------------------------


@given(groups)
def test_an_answer_is_compared_with_the_mean_of_the_others(rewards: list[float]) -> None:
    others = [(sum(rewards) - own) / (len(rewards) - 1) for own in rewards]
    expected = [own - mean for own, mean in zip(rewards, others, strict=True)]
    assert leave_one_out(rewards) == pytest.approx(expected, abs=1e-6)


@given(groups, finite)
def test_a_reward_that_everybody_gets_changes_nothing(rewards: list[float], shift: float) -> None:
    shifted = [reward + shift for reward in rewards]
    assert leave_one_out(shifted) == pytest.approx(leave_one_out(rewards), abs=1e-6)


@given(groups, st.floats(0.5, 100))
def test_advantages_are_in_units_of_reward(rewards: list[float], scale: float) -> None:
    expected = [scale * one for one in leave_one_out(rewards)]
    got = leave_one_out([scale * reward for reward in rewards])
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.floats(-1e6, 1e6), st.integers(2, 16))
def test_equal_rewards_have_no_advantage(reward: float, count: int) -> None:
    assert leave_one_out([reward] * count) == [0.0] * count
