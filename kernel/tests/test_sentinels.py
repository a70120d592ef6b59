"""design.md §8.1: a run that learns nothing says so."""

from collections.abc import Sequence

import numpy as np
import pytest

from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import LogprobsDiffError
from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    TokenAdvantages,
    Trajectory,
    UpdateResult,
)
from skyrl_kernel.sentinels import Sentinels

CHANGED = UpdateResult(metrics={}, weights_changed=True)
UNCHANGED = UpdateResult(metrics={}, weights_changed=False)


def group(*totals: float, trained: bool = True) -> CreditedGroup:
    members: CreditedGroup = []
    for sample, total in enumerate(totals):
        mask = np.array([trained])
        segment = Segment(tokens=np.array([1], dtype=np.int32), num_prompt_tokens=0, loss_mask=mask)
        one = Trajectory(
            prompt=Prompt(uid="p", messages=(), env_class="e"),
            sample=sample,
            segments=(segment,),
            turns=(),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=(total,)),
        )
        tokens = TokenAdvantages(advantages=np.zeros(1, dtype=np.float32), loss_mask=mask)
        members.append((Scored(trajectory=one, scores=(Scores(),)), (tokens,)))
    return members


def warnings(
    groups: Sequence[CreditedGroup],
    results: Sequence[UpdateResult] = (CHANGED,),
    rewarded: bool = True,
) -> list[str]:
    return Sentinels().check(3, Credited(groups), results, rewarded=rewarded)


def test_a_healthy_step_says_nothing() -> None:
    assert warnings([group(0.0, 1.0), group(0.0, 0.0)]) == []


def test_constant_rewards_are_said_with_their_value() -> None:
    (warning,) = warnings([group(0.5, 0.5), group(0.5)])
    assert warning.startswith(
        "step 3: every trajectory earned 0.5: no reward tells one from another"
    )


def test_data_that_nobody_judges_has_no_constant_reward() -> None:
    assert warnings([group(0.0, 0.0)], rewarded=False) == []


def test_a_batch_that_is_all_masked_is_said() -> None:
    (warning,) = warnings([group(0.0, 1.0, trained=False)])
    assert "every token of the batch is masked" in warning


def test_an_empty_batch_trains_on_nothing() -> None:
    assert any("masked" in warning for warning in warnings([]))


def test_unchanged_weights_are_said_if_no_update_of_the_step_changed_any() -> None:
    (warning,) = warnings([group(0.0, 1.0)], [UNCHANGED, UNCHANGED])
    assert "left every weight as it was; look at the learning rate" in warning
    assert warnings([group(0.0, 1.0)], [UNCHANGED, CHANGED]) == []


def test_a_warning_is_repeated_as_it_doubles_and_begins_anew_after_a_pause() -> None:
    sentinels = Sentinels()

    def said(step: int, reward: float) -> str | None:
        found = sentinels.check(step, Credited([group(1.0, reward)]), [CHANGED], rewarded=True)
        return found[0] if found else None

    spoke = [step for step in range(1, 10) if said(step, 1.0)]
    assert spoke == [1, 2, 4, 8]
    assert said(10, 0.0) is None
    assert "steps now" not in (said(11, 1.0) or "steps now")
    assert (said(12, 1.0) or "").endswith("(for 2 steps now)")


def test_streaks_survive_a_resume() -> None:
    first = Sentinels()
    for step in (1, 2, 3):
        first.check(step, Credited([group(1.0)]), [CHANGED], rewarded=True)
    second = Sentinels()
    second.load_state_dict(first.state_dict())
    (warning,) = second.check(4, Credited([group(1.0)]), [CHANGED], rewarded=True)
    assert warning.endswith("(for 4 steps now)")


@pytest.mark.parametrize("rewards", [(0.0,), (1.0, 1.0 + 1e-9)])
def test_nearly_equal_rewards_are_not_constant_and_a_single_one_is(
    rewards: tuple[float, ...],
) -> None:
    assert bool(warnings([group(*rewards)])) == (len(rewards) == 1)


# --- engine and trainer -------------------------------------------------------------------------


def said_of(difference: float | None, warn_above: float | None) -> list[str]:
    return Sentinels(warn_above).check(
        3, Credited([group(0.0, 1.0)]), [CHANGED], rewarded=True, difference=difference
    )


def test_a_difference_between_engine_and_trainer_is_said_above_the_bound() -> None:
    (warning,) = said_of(0.25, 0.1)
    assert warning.startswith(
        "step 3: engine and trainer differ by 0.25 nats per trained token on average "
        "(policy/rollout_train_logprobs_abs_diff_mean), more than trainer.logprobs_diff.warn_above=0.1"
    )
    assert said_of(0.1, 0.1) == said_of(None, 0.1) == said_of(9.0, None) == []
    assert len(said_of(float("nan"), 0.1)) == 1


def test_a_difference_above_the_second_bound_is_an_error_with_causes_and_remedies() -> None:
    sentinels = Sentinels(0.1, 1.0)
    for difference in (None, 0.5, 1.0):
        sentinels.refuse(7, difference)
    with pytest.raises(
        LogprobsDiffError,
        match=r"^step 7: .* 1\.5 nats .*stop_above=1\. Likely causes: .*weight_sync_backend.*"
        r"precision.*temperature.*max_staleness_steps.*The last checkpoint is kept",
    ):
        sentinels.refuse(7, 1.5)
    with pytest.raises(LogprobsDiffError, match="differ by nan nats"):
        sentinels.refuse(7, float("nan"))
    Sentinels(0.1, None).refuse(7, 1.5)
