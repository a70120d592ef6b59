"""The numbers of a step; cases marked SkyRL have the values that its own tests expect."""

from collections.abc import Sequence

import numpy as np
import pytest

from skyrl_kernel import metrics
from skyrl_kernel.credited import Credited
from skyrl_kernel.defaults.accuracy import accuracy
from skyrl_kernel.evaluation import by_source
from skyrl_kernel.measure import dropped_metrics
from skyrl_kernel.producer import Batch
from skyrl_kernel.protocols import Evaluate
from skyrl_kernel.records import (
    Failure,
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
    UpdateResult,
)


def trajectory(
    *turns: float,
    uid: str = "p",
    lengths: Sequence[int] | None = None,
    source: str | None = None,
    versions: Sequence[int] | None = None,
    env_metrics: dict[str, float] | None = None,
    stop_reason: StopReason = StopReason.STOP,
) -> Trajectory:
    """A trajectory with a reward per turn; its turns have these lengths (1 token each)."""
    lengths = lengths or [1] * len(turns)
    ends = np.cumsum(lengths)
    count = int(ends[-1]) if len(ends) else 1
    return Trajectory(
        prompt=Prompt(uid=uid, messages=(), env_class="e", data_source=source),
        sample=0,
        segments=(
            Segment(
                tokens=np.ones(count, dtype=np.int32),
                num_prompt_tokens=0,
                loss_mask=np.ones(count, dtype=np.bool_),
                logprobs=np.zeros(count, dtype=np.float32),
                versions=np.array(versions or [0] * count, dtype=np.int32),
            ),
        ),
        turns=tuple(
            Turn(segment=0, start=int(end) - n, stop=int(end), reward=r, action="")
            for end, n, r in zip(ends, lengths, turns, strict=True)
        ),
        stop_reason=stop_reason,
        reward=Reward(turns=turns),
        env_metrics=env_metrics or {},
    )


def group(*trajectories: Trajectory, lost: int = 0, index: int = 0) -> Group:
    prompt = Prompt(uid=f"p{index}", messages=(), env_class="e")
    failures = tuple(
        Failure(step=1, uid="p", sample=i, kind="task", plugin=None, message="")
        for i in range(lost)
    )
    return Group(index=index, prompt=prompt, trajectories=trajectories, failures=failures)


@pytest.mark.parametrize(
    ("rewards", "mean", "passed", "positive"),
    [
        ([[1.0], [2.0]], 1.5, 1.0, 1.5),
        ([[1.0, 0.0], [0.0, 1.0]], 1.0, 0.5, 1.0),  # by turn: the last one decides about passing
        ([[-1.0], [2.0]], 0.5, 0.5, 1.0),
        ([[1.0, -1.0], [-0.5, 0.5]], 0.0, 0.5, 0.75),
    ],
)
def test_reward_metrics(
    rewards: list[list[float]], mean: float, passed: float, positive: float
) -> None:  # SkyRL
    groups = [group(trajectory(*turns)) for turns in rewards]
    found = metrics.reward_metrics(groups)
    assert found["reward/avg_raw_reward"] == mean
    assert found["reward/avg_pass_at_1"] == passed
    assert found["reward/mean_positive_reward"] == positive


def test_groups_whose_rewards_are_equal_are_counted() -> None:
    groups = [
        group(trajectory(1.0), trajectory(1.0)),
        group(trajectory(0.0), trajectory(1.0)),
        group(trajectory(0.5, 0.5), trajectory(0.0, 1.0)),  # totals are equal, turns are not
        group(lost=2),
    ]
    found = metrics.reward_metrics(groups)
    assert found["reward/zero_variance_groups_frac"] == pytest.approx(2 / 3)
    assert found["reward/avg_pass_at_2"] == 1.0


def test_the_name_of_pass_at_n_does_not_depend_on_what_was_lost() -> None:
    found = metrics.reward_metrics([group(trajectory(1.0), lost=3), group(trajectory(1.0), lost=3)])
    assert found["reward/avg_pass_at_4"] == 1.0


def test_nothing_is_said_about_rewards_where_nothing_was_judged() -> None:
    assert metrics.reward_metrics([group(lost=2)]) == {}
    assert metrics.reward_metrics([group(trajectory())]) == {}  # SFT: no turns


def test_failures_are_counted_by_kind_those_of_dropped_groups_too() -> None:
    batch = Batch(
        groups=(group(trajectory(1.0), lost=1), group(trajectory(1.0), index=5)),
        masked={5: "all rewards equal"},
        dropped=((group(lost=2, index=1), "all trajectories lost"),),
        rounds=2,
    )
    assert metrics.failure_metrics(batch) == {
        "failures/trajectories": 3,
        "failures/task": 3,
        "generate/groups_dropped": 1,
        "generate/groups_masked": 1,
    }


def test_what_is_told_of_a_batch_is_told_of_dropped_groups_apart() -> None:
    dropped = [
        group(trajectory(1.0, lengths=[2]), trajectory(1.0, lengths=[6])),
        group(trajectory(0.0, lengths=[4]), trajectory(0.0, lengths=[4]), index=1),
    ]
    found = dropped_metrics(dropped)
    assert found["reward_dropped/avg_raw_reward"] == 0.5
    assert found["reward_dropped/avg_pass_at_2"] == 0.5
    assert found["generate_dropped/max_num_tokens"] == 6
    assert found["generate_dropped/avg_num_tokens"] == 4
    areas = {"reward_dropped", "generate_dropped"}
    assert {name.partition("/")[0] for name in found} == areas
    told = group(trajectory(1.0, lengths=[2], env_metrics={"steps": 3.0}))
    assert dropped_metrics([told])["environment_dropped/steps"] == 3.0
    assert dropped_metrics([group(lost=2)]) == {}


def test_a_group_that_stands_in_for_another_was_generated_once() -> None:
    one = group(trajectory(1.0), lost=1, index=4)
    batch = Batch(
        groups=(one, one), masked={}, dropped=((group(lost=2, index=5), "why"),), rounds=1
    )
    assert metrics.failure_metrics(batch)["failures/trajectories"] == 3
    assert metrics.async_metrics(batch, 1, 0)["async/keep_rate"] == 0.5


def test_trajectories_of_groups_that_were_filtered_are_counted() -> None:
    batch = Batch(
        groups=tuple(group(trajectory(1.0), trajectory(1.0), index=i) for i in range(4)),
        masked={0: "all rewards equal", 2: "something else", 3: "all rewards equal"},
        dropped=(),
        rounds=1,
    )
    assert metrics.filter_metrics(batch) == {"reward/num_zero_variance_filtered": 4}
    assert metrics.failure_metrics(batch)["generate/groups_masked"] == 3


def test_success_is_counted_by_group_where_the_env_says() -> None:
    right, wrong = {"exact_match": 1.0}, {"exact_match": 0.0}
    groups = [
        group(trajectory(0.5, env_metrics=wrong), trajectory(0.0, env_metrics=wrong)),
        group(trajectory(1.0, env_metrics=right), trajectory(0.0, env_metrics=wrong)),
        group(trajectory(1.0), trajectory(1.0)),
    ]
    found = metrics.reward_metrics(groups)
    assert found["reward/avg_success_at_2"] == 0.5  # one of the two that say
    assert found["reward/avg_pass_at_2"] == 1.0  # half a point passes
    assert "reward/avg_success_at_2" not in metrics.reward_metrics(groups[2:])


def test_times_are_told_from_what_two_runs_share() -> None:
    found = metrics.timing_metrics({"step": 2.0, "eval": 9.0}, ahead=False)
    assert found == {"timing/step": 2.0, "timing/eval": 9.0}
    assert all(map(metrics.is_wall_clock, found))
    assert metrics.is_wall_clock("trainer/tokens_per_second_per_gpu")
    assert not metrics.is_wall_clock("reward/avg_raw_reward")


def test_advantage_metrics_look_at_trained_tokens_only() -> None:
    one = trajectory(2.0, lengths=[3])
    tokens = TokenAdvantages(
        advantages=np.array([1.0, -3.0, 99.0], dtype=np.float32),
        loss_mask=np.array([True, True, False]),
    )
    found = metrics.advantage_metrics(
        Credited([[(Scored(trajectory=one, scores=(Scores(),)), (tokens,))]])
    )
    assert found == {
        "loss/avg_final_rewards": 2.0,
        "loss/avg_raw_advantages": -1.0,
        "loss/avg_raw_advantages_abs": 2.0,
        "loss/trained_tokens": 2.0,
    }


def test_updates_are_averaged_and_extremes_stay_extremes() -> None:
    results = [
        UpdateResult(
            metrics={"final_loss": 1.0, "ratio_max": 2.0, "lp_min": -3.0}, weights_changed=True
        ),
        UpdateResult(
            metrics={"final_loss": 3.0, "ratio_max": 5.0, "lp_min": -1.0}, weights_changed=True
        ),
    ]
    assert metrics.update_metrics(results) == {
        "policy/final_loss": 2.0,
        "policy/ratio_max": 5.0,
        "policy/lp_min": -3.0,
    }


def test_staleness_counts_from_the_oldest_token() -> None:
    groups = (
        group(trajectory(1.0, lengths=[3], versions=[4, 5, 5])),
        group(trajectory(1.0, lengths=[2], versions=[6, 6]), index=1),
    )
    dropped = ((group(lost=2, index=2), "why"),)
    batch = Batch(groups=groups, masked={}, dropped=dropped, rounds=1, ready=3)
    assert metrics.async_metrics(batch, 6, 1) == {
        "async/staleness_mean": 1.0,
        "async/staleness_max": 2.0,
        "async/staleness_min": 0.0,
        "async/staleness_ratio": 0.5,
        "async/staleness_violation_count": 1.0,
        "async/gen_buffer_qsize_at_wait_start": 3.0,
        "async/num_groups_dropped": 1.0,
        "async/keep_rate": pytest.approx(2 / 3),
    }
    assert metrics.async_metrics(batch, 6, 2)["async/staleness_violation_count"] == 0
    nothing = Batch(groups=(), masked={}, dropped=(), rounds=1)
    assert metrics.async_metrics(nothing, 6, 0) == {
        "async/gen_buffer_qsize_at_wait_start": 0.0,
        "async/num_groups_dropped": 0.0,
        "async/keep_rate": 0.0,
    }


# --- evaluation ------------------------------------------------------------------------


def test_evaluation_reports_each_source_and_all() -> None:  # SkyRL
    trajectories = [
        trajectory(1.0, uid="0", source="dataset/a"),
        trajectory(0.0, uid="1", source="dataset/b"),
        trajectory(0.5, uid="2"),
    ]
    scored = [Scored(trajectory=one, scores=()) for one in trajectories]
    evaluate = Evaluate(fn=lambda all_: accuracy([one.trajectory for one in all_]))
    found = by_source(evaluate, scored, [])
    assert found["eval/dataset_a/avg_score"] == 1.0
    assert found["eval/dataset_b/avg_score"] == 0.0
    assert found["eval/unknown/avg_score"] == 0.5
    assert found["eval/all/avg_score"] == 0.5
    assert found["eval/all/failed"] == 0


def test_accuracy_passes_a_prompt_if_one_trajectory_of_it_ends_well() -> None:
    trajectories = [
        trajectory(0.0, uid="a"),
        trajectory(0.0, 0.5, uid="a", env_metrics={"exact_match": 1.0}),
        trajectory(1.0, -1.0, uid="b", env_metrics={"exact_match": 0.0}),
        trajectory(0.0, uid="b"),
    ]
    found = accuracy(trajectories)
    assert found["pass_at_2"] == 0.5  # a passes; b's good turn was not its last
    assert found["avg_score"] == 0.125  # (0 + 0.5 + 0 + 0) / 4
    assert found["mean_positive_reward"] == 0.375  # (0 + 0.5 + 1 + 0) / 4
    assert found["exact_match"] == 0.5
    assert found["num_trajectories"] == 4
    assert accuracy([]) == {}
