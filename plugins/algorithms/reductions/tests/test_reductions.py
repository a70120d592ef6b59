"""Reductions against numbers worked out by hand, and what must not change them."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.config import AlgorithmConfig, GeneratorConfig, SamplingConfig
from skyrl_kernel.protocols import Reduction
from skyrl_reductions import constant, means, prompt_mean, sequence_mean

NAMES = ("sequence_mean", "prompt_mean", "seq_mean_token_sum_norm")


def reduction(name: str, max_seq_len: int | None = 10, budget: int = 32) -> Reduction:
    sampling = SamplingConfig(max_generate_length=budget)
    settings = {
        AlgorithmConfig: AlgorithmConfig(max_seq_len=max_seq_len),
        GeneratorConfig: GeneratorConfig(sampling_params=sampling),
    }
    made = means.make_reduction(name) or constant.make_reduction(name, settings)
    assert made is not None
    return made


def reduced(
    name: str,
    losses: Sequence[Sequence[float]],
    masks: Sequence[Sequence[int]],
    trajectories: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> float:
    """Σ weight × loss over a mini-batch."""
    rows = [np.array(mask, dtype=bool) for mask in masks]
    trajectories = trajectories or list(range(len(rows)))
    weights = reduction(name)(rows, trajectories, groups or [0] * len(rows))
    assert all(weight.dtype == np.float32 for weight in weights)
    return float(
        sum((weight * np.array(row)).sum() for weight, row in zip(weights, losses, strict=True))
    )


# --- worked numbers -----------------------------------------------------------------


def test_every_trajectory_counts_the_same() -> None:
    # means (1 + 2) / 2 = 1.5 and 3 / 1 = 3, and their mean
    assert reduced("sequence_mean", [[1, 2], [3, 4]], [[1, 1], [1, 0]]) == pytest.approx(2.25)


def test_the_rows_of_a_trajectory_count_together() -> None:
    # one trajectory of two rows: (1 + 2 + 3) / 3
    losses, masks = [[1, 2], [3, 4]], [[1, 1], [1, 0]]
    assert reduced("sequence_mean", losses, masks, trajectories=[0, 0]) == pytest.approx(2)


def test_every_prompt_counts_the_same() -> None:
    # prompt 0 has rows (1, 2) and (3): mean 2; prompt 1 has (8, 10): mean 9; their mean 5.5
    losses, masks = [[1, 2], [3, 4], [8, 10]], [[1, 1], [1, 0], [1, 1]]
    assert reduced("prompt_mean", losses, masks, groups=[0, 0, 1]) == pytest.approx(5.5)


def test_sums_are_divided_by_the_constant() -> None:
    # row 1: 2 + 3 over 10; row 2: 9 over 10; their mean
    losses, masks = [[2, 3], [9, 12]], [[1, 1], [1, 0]]
    assert reduced("seq_mean_token_sum_norm", losses, masks) == pytest.approx(0.7)


def test_with_the_constant_the_rows_of_a_trajectory_are_summed() -> None:
    # one trajectory of two rows: (2 + 3 + 9) / 10, not half of it
    losses, masks = [[2, 3], [9, 12]], [[1, 1], [1, 0]]
    assert reduced("seq_mean_token_sum_norm", losses, masks, [0, 0]) == pytest.approx(1.4)


def test_the_constant_is_the_generation_budget_unless_it_is_set() -> None:
    """SkyRL wants it set; in Dr. GRPO's paper and code it is the most tokens of a completion."""
    (weights,) = reduction("seq_mean_token_sum_norm", None, budget=32)([np.array([True])], [0], [0])
    assert weights.tolist() == [1 / 32]


# --- extremes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_where_every_token_is_masked_the_sum_is_zero(name: str) -> None:
    assert reduced(name, [[1, 2], [3, 4]], [[0, 0], [0, 0]]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_mini_batch_without_rows_has_no_weights(name: str) -> None:
    assert reduction(name)([], [], []) == []


def test_what_is_masked_leaves_its_share_empty() -> None:
    """As in SkyRL: the others are not raised for it."""
    assert reduced("sequence_mean", [[4], [8]], [[1], [0]]) == 2  # 4 / 2, not 4
    assert reduced("prompt_mean", [[4], [8]], [[1], [0]], groups=[0, 1]) == 2
    assert reduced("seq_mean_token_sum_norm", [[4], [8]], [[1], [0]]) == pytest.approx(0.2)


@pytest.mark.parametrize("module", [means, constant])
def test_another_name_is_not_answered(module: object) -> None:
    if module is means:
        assert means.make_reduction("token_mean") is None
    else:
        assert constant.make_reduction("token_mean", {}) is None


# --- what must hold for any masks -----------------------------------------------------

rows = st.lists(
    st.tuples(st.lists(st.booleans(), max_size=5), st.integers(0, 2), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)
"""Mask, trajectory within its prompt, prompt."""


def numbered(
    drawn: list[tuple[list[bool], int, int]],
) -> tuple[list[np.ndarray], list[int], list[int]]:
    masks = [np.array(mask, dtype=bool) for mask, _, _ in drawn]
    return masks, [3 * group + one for _, one, group in drawn], [group for _, _, group in drawn]


@given(rows, st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(drawn, name, rng) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(drawn)))
    rng.shuffle(order)
    straight = reduction(name)(*numbered(drawn))
    shuffled = reduction(name)(*numbered([drawn[i] for i in order]))
    for place, i in enumerate(order):
        np.testing.assert_array_equal(shuffled[place], straight[i])


@given(rows, st.sampled_from(NAMES))
def test_only_trained_tokens_have_a_weight(drawn, name) -> None:  # type: ignore[no-untyped-def]
    masks, trajectories, groups = numbered(drawn)
    for mask, weight in zip(masks, reduction(name)(masks, trajectories, groups), strict=True):
        assert (weight[mask] > 0).all()
        assert not weight[~mask].any()


@given(rows)
def test_the_weights_of_each_trajectory_and_of_each_prompt_add_up_alike(drawn) -> None:  # type: ignore[no-untyped-def]
    masks, trajectories, groups = numbered(drawn)
    for reduce, owners in ((sequence_mean, trajectories), (prompt_mean, groups)):
        totals: dict[int, float] = {}
        for owner, weight in zip(owners, reduce(masks, trajectories, groups), strict=True):
            totals[owner] = totals.get(owner, 0.0) + float(weight.sum())
        for total in totals.values():
            assert total == pytest.approx(1 / len(totals)) or total == 0
