"""Generalised advantage estimation against numbers worked out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.batch import credit
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.errors import HookError, NonFiniteError
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import (
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
from skyrl_ppo import credit_row, whiten
from skyrl_ppo.gae import advantage, gae

number = st.floats(-10, 10, allow_subnormal=False).map(lambda x: round(x, 3))
fraction = st.floats(0, 1).map(lambda x: round(x, 3))
steps = st.lists(st.tuples(number, number), min_size=1, max_size=8)


def stage(**config: float) -> Advantage:
    made = advantage("gae", {AlgorithmConfig: AlgorithmConfig(**config)})
    assert made is not None
    return made


def judged(
    mask: Sequence[bool],
    values: Sequence[float],
    *,
    turns: Sequence[tuple[int, int, float]] = (),
    token_rewards: Sequence[float] = (),
) -> Scored:
    """A trajectory of one row; a turn is (start, stop, reward)."""
    row = np.array(mask)
    segment = Segment(
        tokens=np.arange(len(row), dtype=np.int32), num_prompt_tokens=1, loss_mask=row
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="0:7", messages=[], env_class="none"),
            sample=3,
            segments=(segment,),
            turns=tuple(
                Turn(segment=0, start=start, stop=stop, reward=reward, action="")
                for start, stop, reward in turns
            ),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=tuple(reward for _, _, reward in turns)),
        ),
        scores=(Scores(values=np.array(values, np.float32)),),
        token_rewards=(np.array(token_rewards, np.float32),) if len(token_rewards) else (),
    )


def one(scored: Scored, **config: float) -> TokenAdvantages:
    """What the stage says of a trajectory that is alone in its batch."""
    (((entry,),),) = stage(**config)([[scored]])
    return entry


# --- worked numbers -------------------------------------------------------------------


def test_three_tokens_by_hand() -> None:
    # δ = (1 + 1 - 0.5, 2 + 1.5 - 1, 3 - 1.5) = (1.5, 2.5, 1.5); A = sums from the end
    row = credit_row(
        np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5]), np.ones(3, bool), 1.0, 1.0
    )
    assert row.advantages.tolist() == [5.5, 4.0, 1.5]
    assert row.returns.tolist() == [6, 5, 3]  # with γ = λ = 1 what is still earned
    # mean 11/3, sample variance 4.0833: (5.5 - 3.6667) / 2.0207 = 0.90726
    (((white,),),) = whiten([[(row,)]])
    assert white.advantages.tolist() == pytest.approx([0.90726, 0.16496, -1.07222], abs=1e-5)
    assert white.returns.tolist() == [6, 5, 3]  # returns are never whitened


def test_three_tokens_discounted_by_hand() -> None:
    # γ = ½: δ = (1 + ½·1 - 0.5, 2 + ½·1.5 - 1, 1.5) = (1, 1.75, 1.5); A_t = δ_t + ½ A_{t+1}
    row = credit_row(
        np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5]), np.ones(3, bool), 0.5, 1.0
    )
    assert row.advantages.tolist() == [2.25, 2.5, 1.5]
    assert row.returns.tolist() == [2.75, 3.5, 3]
    (((white,),),) = whiten([[(row,)]])
    assert white.advantages.tolist() == pytest.approx([0.32026, 0.80064, -1.1209], abs=1e-4)


def test_a_lambda_of_zero_is_the_critic_s_surprise_alone() -> None:
    advantages = gae(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5]), 1.0, 0.0)
    assert advantages.tolist() == [1.5, 2.5, 1.5]


def test_an_observation_is_no_step_and_its_reward_answers_to_the_token_before() -> None:
    # Tokens: sampled, observed, sampled. SkyRL walks over all three; with γ = λ = 1 the returns
    # of the sampled ones are the same, [6, ·, 3], and so are the whitened advantages.
    rewards, values = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5])
    mask = np.array([True, False, True])
    row = credit_row(rewards, values, mask, 1.0, 1.0)
    assert row.returns.tolist() == [6, 0, 3]
    (((white,),),) = whiten([[(row,)]])
    assert white.advantages.tolist() == pytest.approx([0.7071, 0, -0.7071], abs=1e-4)
    # With γ = ½ they differ. There: the middle token costs a discount and puts its own value, of
    # which nobody trains anything, into the first one's advantage: returns [2.75, 3.5, 3].
    # Here there are two steps with rewards 3 and 3: A = (3 + ½·1.5 - 0.5 + ½·1.5, 1.5) = (4, 1.5).
    row = credit_row(rewards, values, mask, 0.5, 1.0)
    assert row.advantages.tolist() == [4.0, 0, 1.5]
    assert row.returns.tolist() == [4.5, 0, 3]


def test_the_reward_of_a_turn_lands_on_its_last_token() -> None:
    # prompt, turn 1 of two tokens, observation, turn 2 of two tokens
    mask = [False, True, True, False, True, True]
    scored = judged(mask, [9, 0, 0, 9, 0, 0], turns=[(1, 3, 0.25), (4, 6, 1.0)])
    assert one(scored).returns.tolist() == [0, 1.25, 1.25, 0, 1, 1]
    # γ = ½: four steps with rewards 0, 0.25, 0, 1
    assert one(scored, gamma=0.5).returns.tolist() == [0, 0.25, 0.5, 0, 0.5, 1]
    # λ = 0: the critic says 0 everywhere, so only a rewarded token has an advantage
    white = one(scored, lambd=0.0).advantages
    assert white[[1, 4]].tolist() == pytest.approx([-0.6603, -0.6603], abs=1e-4)


def test_a_turn_whose_last_token_is_not_trained_on_is_still_credited() -> None:
    # an end-of-turn token that the agent added: its reward goes to the token before
    scored = judged([False, True, True, False], [0, 0.5, 0.5, 7], turns=[(1, 4, 1.0)])
    assert one(scored).returns.tolist() == [0, 1, 1, 0]
    # a turn of which nothing is trained on, before all others: to the first token
    scored = judged([False, False, True, True], [0, 3, 0, 0], turns=[(1, 2, 0.5), (2, 4, 1.0)])
    assert one(scored).returns.tolist() == [0, 0, 1.5, 1]


def test_what_tokens_earn_is_added_where_it_was_earned() -> None:
    # a KL penalty of 0.1 on each of two tokens; that of the prompt does not count
    scored = judged(
        [False, True, True], [0, 0, 0], turns=[(1, 3, 1.0)], token_rewards=[-5, -0.1, -0.1]
    )
    assert one(scored).returns.tolist() == pytest.approx([0, 0.8, 0.9])


# --- whitening --------------------------------------------------------------------------


def entry(advantages: Sequence[float], mask: Sequence[bool]) -> TokenAdvantages:
    values = np.array(advantages, np.float32)
    return TokenAdvantages(advantages=values, loss_mask=np.array(mask), returns=values + 1)


def test_a_batch_is_whitened_as_one_and_by_its_trained_tokens_alone() -> None:
    rows = [[(entry([1, 99], [True, False]),)], [(entry([2, 3], [True, True]),)]]
    ((first,),), ((second,),) = whiten(rows)
    assert first.advantages.tolist() == pytest.approx([-1, 0])  # mean 2, sample variance 1
    assert second.advantages.tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_equal_advantages_become_zero_and_so_does_one_alone(count: int, value: float) -> None:
    # SkyRL refuses a single token: its variance is undefined
    (((white,),),) = whiten([[(entry([value] * count, [True] * count),)]])
    assert white.advantages.tolist() == [0] * count


def test_nothing_to_whiten_is_no_error() -> None:
    assert whiten([]) == []
    (((white,),),) = whiten([[(entry([5.0], [False]),)]])
    assert not white.loss_mask.any()


# --- what must not change it ---------------------------------------------------------------


@given(steps, fraction, fraction)
def test_it_is_the_discounted_sum_of_all_later_surprises(
    rows: list[tuple[float, float]], gamma: float, lambd: float
) -> None:
    rewards, values = np.array(rows).T
    later = np.append(values[1:], 0.0)
    surprises = rewards + gamma * later - values
    expected = [
        sum((gamma * lambd) ** k * surprise for k, surprise in enumerate(surprises[t:]))
        for t in range(len(rows))
    ]
    np.testing.assert_allclose(gae(rewards, values, gamma, lambd), expected, atol=1e-9)


@given(steps)
def test_without_discount_returns_are_what_is_still_earned_whatever_the_critic_says(
    rows: list[tuple[float, float]],
) -> None:
    rewards, values = np.array(rows).T
    row = credit_row(rewards, values, np.ones(len(rows), bool), 1.0, 1.0)
    np.testing.assert_allclose(row.returns, np.cumsum(rewards[::-1])[::-1], atol=1e-4)


@given(steps, st.data())
def test_what_the_critic_says_of_untrained_tokens_is_never_read(
    rows: list[tuple[float, float]], data: st.DataObject
) -> None:
    rewards, values = np.array(rows).T
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    left = credit_row(rewards, values, mask, 0.9, 0.8)
    right = credit_row(rewards, np.where(mask, values, np.nan), mask, 0.9, 0.8)
    np.testing.assert_array_equal(left.advantages, right.advantages)
    assert np.isfinite(right.returns).all()
    assert not right.advantages[~mask].any()


@given(steps, number)
def test_a_constant_reward_more_at_the_end_moves_no_whitened_advantage(
    rows: list[tuple[float, float]], more: float
) -> None:
    # with λ = 1 it is in every return, and whitening takes the mean away
    rewards, values = np.array(rows).T
    mask = np.ones(len(rows), bool)
    moved = rewards + more * (np.arange(len(rows)) == len(rows) - 1)
    left, right = (credit_row(one, values, mask, 1.0, 1.0) for one in (rewards, moved))
    if left.advantages.std() < 1e-2:
        return  # nearly equal advantages: rounding is all there is
    (((a,),),), (((b,),),) = whiten([[(left,)]]), whiten([[(right,)]])
    np.testing.assert_allclose(a.advantages, b.advantages, atol=1e-3)


# --- refusals and metrics ---------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_refused_by_trajectory() -> None:
    scored = judged([False, True, True], [0, np.nan, 0], turns=[(1, 3, 1.0)])
    with pytest.raises(NonFiniteError, match="trajectory 0:7/3"):
        credit(stage(), [[scored]], masked=())


def test_several_rows_are_refused() -> None:
    assert stage().needs_one_row
    scored = judged([False, True], [0, 0], turns=[(1, 2, 1.0)])
    two = Scored(
        trajectory=Trajectory(
            prompt=scored.trajectory.prompt,
            sample=0,
            segments=scored.trajectory.segments * 2,
            turns=(),
            stop_reason=StopReason.STOP,
        ),
        scores=scored.scores * 2,
    )
    with pytest.raises(HookError, match="2 token rows"):
        credit(stage(), [[two]], masked=())


def measured(scored: Sequence[Scored]) -> dict[str, float]:
    made = stage()
    return dict(made.measure(credit(made, [scored], masked=())))


def test_explained_variance_says_how_well_the_critic_foretold() -> None:
    def both(low: float, high: float) -> list[Scored]:
        return [
            judged([False, True], [0, low], turns=[(1, 2, 0.0)]),
            judged([False, True], [0, high], turns=[(1, 2, 1.0)]),
        ]

    assert measured(both(0.0, 1.0))["critic/explained_variance"] == 1
    assert measured(both(0.5, 0.5))["critic/explained_variance"] == 0
    assert measured(both(1.0, 0.0))["critic/explained_variance"] == -3  # errors -1, 1: 1 - 1/¼
    told = measured(both(0.25, 0.75))  # errors -¼, ¼: 1 - (1/16) / ¼
    assert told["critic/explained_variance"] == 0.75
    assert told["critic/returns_mean"] == told["critic/old_values_mean"] == 0.5
    assert (told["critic/returns_std"], told["critic/old_values_std"]) == (0.5, 0.25)


def test_equal_returns_have_no_variance_to_explain_and_no_tokens_no_metrics() -> None:
    scored = judged([False, True], [0, 0.3], turns=[(1, 2, 1.0)])
    assert "critic/explained_variance" not in measured([scored])
    assert measured([judged([False, False], [0, 0.3])]) == {}


def test_another_estimator_is_not_its_own() -> None:
    assert advantage("grpo", {AlgorithmConfig: AlgorithmConfig()}) is None
    assert stage().needs == {"values"}
