"""Scores, advantages and weights of a batch, in worked numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.batch import Scorer, credit, training_samples, trajectory_mean
from skyrl_kernel.defaults.token_mean import token_mean
from skyrl_kernel.errors import HookError, NonFiniteError
from skyrl_kernel.protocols import Advantage, CreditedGroup
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
)
from skyrl_kernel.testing.scripted import Script, ScriptedTrainer
from skyrl_kernel.testing.scripted.engine import row_logprobs


def floats(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def segment(mask: Sequence[int], *, sampled: bool = True) -> Segment:
    count = len(mask)
    return Segment(
        tokens=np.arange(1, count + 1, dtype=np.int32),
        num_prompt_tokens=0,
        loss_mask=np.array(mask, dtype=np.bool_),
        logprobs=floats([-0.5] * count) if sampled else None,
        versions=np.zeros(count, dtype=np.int32) if sampled else None,
    )


def trajectory(*masks: Sequence[int], uid: str = "p", sample: int = 0, sampled: bool = True):
    return Trajectory(
        prompt=Prompt(uid=uid, messages=(), env_class="e"),
        sample=sample,
        segments=tuple(segment(mask, sampled=sampled) for mask in masks),
        turns=(),
        stop_reason=StopReason.STOP,
        reward=Reward(turns=(1.0,)),
    )


def credited(*groups: Sequence[Sequence[int]], advantages: object = None) -> list[CreditedGroup]:
    """Groups of trajectories of one segment each, given by their masks; all advantages are 1."""
    out = []
    for group in groups:
        members: CreditedGroup = []
        for sample, mask in enumerate(group):
            one = trajectory(mask, sample=sample)
            tokens = TokenAdvantages(
                advantages=np.ones(len(mask), dtype=np.float32),
                loss_mask=one.segments[0].loss_mask,
            )
            members.append((Scored(trajectory=one, scores=(Scores(),)), (tokens,)))
        out.append(members)
    return out


def weighted(values: Sequence[Sequence[float]], weights: Sequence[np.ndarray]) -> float:
    return float(sum((np.array(v) * w).sum() for v, w in zip(values, weights, strict=True)))


# --- weights ---------------------------------------------------------------------------


def test_the_token_mean_is_over_all_tokens_of_the_mini_batch() -> None:  # SkyRL's case
    masks = [np.array([1, 1, 0], bool), np.array([1, 1, 1], bool)]
    weights = token_mean(masks, [0, 1], [0, 0])
    # (1 + 2 + 4 + 5 + 6) / 5 = 3.6
    assert weighted([[1, 2, 3], [4, 5, 6]], weights) == pytest.approx(3.6)


def test_the_trajectory_mean_is_over_tokens_and_then_over_trajectories() -> None:  # SkyRL's case
    masks = [np.array([1, 1], bool), np.array([1, 0], bool)]
    # ((1 + 2) / 2 + 3) / 2 = 2.25
    assert weighted([[1, 2], [3, 4]], trajectory_mean(masks, [0, 1], 2)) == pytest.approx(2.25)


def test_weights_of_a_batch_without_trained_tokens_are_zero_and_finite() -> None:
    masks = [np.zeros(2, bool)]
    assert weighted([[1, 2]], token_mean(masks, [0], [0])) == 0
    assert weighted([[1, 2]], trajectory_mean(masks, [0], 1)) == 0
    assert token_mean([], [], []) == []
    assert trajectory_mean([], [], 0) == []


def test_segments_of_one_trajectory_share_its_weight() -> None:
    masks = [np.array([1], bool), np.array([1, 1, 1], bool), np.array([1, 1], bool)]
    # trajectory 0 has 1 + 3 tokens in two rows: 1 / (2 × 4) each; trajectory 1: 1 / (2 × 2)
    rows = trajectory_mean(masks, [0, 0, 1], 2)
    assert [row.tolist() for row in rows] == [[0.125], [0.125] * 3, [0.25] * 2]


def test_a_trajectory_without_trained_tokens_still_counts_in_the_mean() -> None:
    masks = [np.array([1, 1], bool), np.array([0, 0], bool)]
    rows = trajectory_mean(masks, [0, 1], 2)
    assert [row.tolist() for row in rows] == [[0.25, 0.25], [0, 0]]


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=8),
)
def test_weights_sum_to_one_over_what_is_trained(masks: list[list[bool]]) -> None:
    arrays = [np.array(mask) for mask in masks]
    trained = [mask.any() for mask in arrays]
    owners = list(range(len(arrays)))
    tokens = token_mean(arrays, owners, owners)
    means = trajectory_mean(arrays, owners, len(arrays))
    for weights, total in ((tokens, float(any(trained))), (means, float(np.mean(trained)))):
        assert sum(float(row.sum()) for row in weights) == pytest.approx(total, abs=1e-5)
        for row, mask in zip(weights, arrays, strict=True):
            assert not row[~mask].any()
            assert row.dtype == np.float32


# --- samples ---------------------------------------------------------------------------


def test_samples_are_the_rows_of_the_mini_batch_with_a_weight_per_token_and_term() -> None:
    groups = credited([[0, 1, 1], [0, 1]], [[1]])
    samples = training_samples(groups, token_mean, {"policy": 1.0, "kl": 0.1})

    assert [(s.group, s.trajectory, s.trajectory_id) for s in samples] == [
        (0, 0, "p/0"),
        (0, 1, "p/1"),
        (1, 2, "p/0"),
    ]
    # 4 trained tokens; 3 trajectories with 2, 1, 1 of them
    assert [s.loss_weights["policy"].tolist() for s in samples] == [
        [0, 0.25, 0.25],
        [0, 0.25],
        [0.25],
    ]
    assert [s.loss_weights["kl"].tolist() for s in samples] == [
        pytest.approx([0, 1 / 6, 1 / 6]),
        pytest.approx([0, 1 / 3]),
        pytest.approx([1 / 3]),
    ]
    assert samples[0].advantages.dtype == np.float32
    assert samples[0].sampler_logprobs is not None


def test_segments_number_one_trajectory() -> None:
    one = trajectory([1, 1], [1])
    tokens = tuple(
        TokenAdvantages(advantages=floats([2.0] * len(s.tokens)), loss_mask=s.loss_mask)
        for s in one.segments
    )
    member = (Scored(trajectory=one, scores=(Scores(), Scores())), tokens)
    samples = training_samples([[member], [member]], token_mean, {"policy": 1.0})

    assert [(s.group, s.trajectory) for s in samples] == [(0, 0), (0, 0), (1, 1), (1, 1)]


@given(
    masks=st.lists(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 12),
)
def test_a_split_into_micro_batches_changes_no_sum(masks: list[list[list[int]]], cut: int) -> None:
    samples = training_samples(credited(*masks), token_mean, {"policy": 1.0, "kl": 1.0})
    values = [np.arange(len(s.tokens)) * 0.5 + s.trajectory for s in samples]

    def objective(rows: slice) -> float:
        return sum(
            float((s.loss_weights["policy"] * v + s.loss_weights["kl"] * v**2)[s.loss_mask].sum())
            for s, v in zip(samples[rows], values[rows], strict=True)
        )

    parts = objective(slice(0, cut)) + objective(slice(cut, None))
    assert parts == pytest.approx(objective(slice(None)), abs=1e-5)


# --- advantages ------------------------------------------------------------------------


def scored(*masks: Sequence[int]) -> list[list[Scored]]:
    return [
        [
            Scored(trajectory=trajectory(mask, sample=i), scores=(Scores(),))
            for i, mask in enumerate(masks)
        ]
    ]


def returning(**changes: object) -> Advantage:
    """An advantage of 1 everywhere, changed."""

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        return [
            [
                tuple(
                    replace(
                        TokenAdvantages(
                            advantages=np.ones(len(s.tokens), dtype=np.float32),
                            loss_mask=s.loss_mask,
                        ),
                        **changes,
                    )
                    for s in one.trajectory.segments
                )
                for one in group
            ]
            for group in groups
        ]

    return Advantage(fn=fn)


def test_a_masked_group_keeps_its_place_and_trains_on_nothing() -> None:
    groups = [*scored([1, 1]), *scored([0, 1])]
    (first,), (second,) = credit(returning(), groups, masked={1})

    assert first[1][0].loss_mask.tolist() == [True, True]
    assert second[1][0].loss_mask.tolist() == [False, False]
    assert groups[1][0].trajectory.segments[0].loss_mask.tolist() == [False, True]


def test_the_tokens_of_a_masked_group_are_masked_before_the_advantage_sees_them() -> None:
    """So that statistics over the batch are of what is trained on."""
    seen = []

    def fn(groups: Sequence[Sequence[Scored]]) -> Any:
        seen.extend(one.trajectory.segments[0].loss_mask.tolist() for g in groups for one in g)
        return returning()(groups)

    credit(Advantage(fn=fn), [*scored([1, 1]), *scored([0, 1])], masked={1})
    assert seen == [[True, True], [False, False]]


def test_an_advantage_may_mask_more_but_not_less() -> None:
    credit(returning(loss_mask=np.array([False, False])), scored([0, 1]), ())
    with pytest.raises(
        HookError, match="unmasked tokens of trajectory p/0 that the policy did not"
    ):
        credit(returning(loss_mask=np.array([True, True])), scored([0, 1]), ())


def test_credit_along_one_row_refuses_trajectories_of_several() -> None:
    several = [[Scored(trajectory=trajectory([0, 1], [0, 1]), scores=(Scores(), Scores()))]]
    with pytest.raises(HookError, match=r"p/0 has 2 token rows.*credits tokens along one"):
        credit(replace(returning(), needs_one_row=True), several, masked=())


@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_an_infinite_credit_of_a_trained_token_names_its_trajectory(name: str) -> None:
    with pytest.raises(NonFiniteError, match=f"trajectory p/0: {name} are not finite"):
        credit(returning(**{name: floats([np.nan, 1])}), scored([1, 1]), ())
    credit(returning(**{name: floats([np.nan, 1])}), scored([0, 1]), ())  # nobody reads it


def test_wrong_shapes_and_counts_are_refused_with_both_sides() -> None:
    with pytest.raises(HookError, match=r"shapes \(3,\) and \(2,\).*p/0, whose segment has \(2,\)"):
        credit(returning(advantages=floats([1, 1, 1])), scored([1, 1]), ())
    with pytest.raises(HookError, match=r"one entry per trajectory.* returned \[0\] for \[1\]"):
        credit(Advantage(fn=lambda groups: [[]]), scored([1]), ())
    with pytest.raises(HookError, match="0 entries for trajectory p/0, which has 1 segments"):
        credit(Advantage(fn=lambda groups: [[()]]), scored([1]), ())


# --- scores ----------------------------------------------------------------------------


def groups_of(*masks: Sequence[int], sampled: bool = True) -> list[Group]:
    trajectories = tuple(trajectory(m, sample=i, sampled=sampled) for i, m in enumerate(masks))
    return [Group(index=0, prompt=trajectories[0].prompt, trajectories=trajectories)]


def scorer(*needs: str, recompute_old: bool = False) -> tuple[Scorer, ScriptedTrainer]:
    trainer = ScriptedTrainer(Script())
    return (
        Scorer(
            trainer=trainer,
            needs=frozenset(needs),
            recompute_old=recompute_old,
            temperature=1.0,
        ),
        trainer,
    )


def test_nothing_is_computed_that_nobody_needs() -> None:
    score, trainer = scorer()
    ((one,),) = score(groups_of([1, 1]))
    assert one.scores == (Scores(),)
    assert trainer.scored == []


def test_old_log_probs_are_the_samplers_where_it_shares_the_weights() -> None:
    score, trainer = scorer("old_logprobs")
    ((one,),) = score(groups_of([1, 1]))
    assert one.scores[0].old_logprobs is one.trajectory.segments[0].logprobs
    assert trainer.scored == []


def test_old_log_probs_are_computed_for_data_that_was_not_sampled() -> None:
    score, trainer = scorer("old_logprobs")
    ((one,),) = score(groups_of([1, 1], sampled=False))
    assert one.scores[0].old_logprobs is not None
    assert trainer.scored == [("policy", 1)]


def test_data_that_was_not_sampled_is_refused_where_its_ratio_to_the_sampler_is_needed() -> None:
    score = replace(scorer()[0], only_sampled=True)
    assert len(score(groups_of([1, 1]))) == 1
    with pytest.raises(
        HookError, match=r"the loss or its off-policy correction needs .* trajectory p/0 was not"
    ):
        score(groups_of([1, 1], sampled=False))


@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "teacher_logprobs", "values"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_score_may_be_nan_or_infinite(name: str, bad: float) -> None:
    class Broken(ScriptedTrainer):
        def score(self, role, rows, *, temperature):
            return [floats([0, bad, 0][: len(row)]) for row in rows]

    made = replace(scorer(name, recompute_old=True)[0], trainer=Broken(Script()))
    with pytest.raises(NonFiniteError, match=f"trajectory p/1: {name} are not finite"):
        made(groups_of([0, 0], [1, 1]))  # the first one's bad number is masked


def test_each_role_scores_all_rows_at_once_and_each_row_gets_its_own() -> None:
    score, trainer = scorer("old_logprobs", "ref_logprobs", recompute_old=True)
    trainer.weight += 1.0
    groups = [*groups_of([1, 1], [1, 1, 1]), *groups_of([1])]
    first, second = score(groups)

    assert trainer.scored == [("policy", 3), ("reference", 3)]
    for one in [*first, *second]:
        tokens = one.trajectory.segments[0].tokens
        assert one.scores[0].old_logprobs.tolist() == row_logprobs(1.0, tokens).tolist()
        assert one.scores[0].ref_logprobs.tolist() == row_logprobs(0.0, tokens).tolist()
        assert one.scores[0].values is None


def test_a_score_that_is_not_finite_names_its_trajectory() -> None:
    class Broken(ScriptedTrainer):
        def score(self, role, rows, *, temperature):
            return [floats([np.nan] * len(row)) for row in rows]

    score = Scorer(
        trainer=Broken(Script()),
        needs=frozenset({"ref_logprobs"}),
        recompute_old=False,
        temperature=1.0,
    )
    with pytest.raises(NonFiniteError, match="trajectory p/1: ref_logprobs are not finite"):
        score(groups_of([0, 0], [1, 1]))
