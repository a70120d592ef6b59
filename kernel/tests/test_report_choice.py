"""Which trajectories a report shows first, and that it forgets none."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.report.choice import Row, choose, spread


def rows_of(step: int, rewards: Sequence[Sequence[float | None]]) -> list[Row]:
    """A step with a group for each list of rewards."""
    pairs = [
        (group, at, reward) for group, own in enumerate(rewards) for at, reward in enumerate(own)
    ]
    return [
        Row(step=step, place=place, group=group, uid=f"u{group}", sample=at, reward=reward, num_tokens=9)
        for place, (group, at, reward) in enumerate(pairs)
    ]  # fmt: skip


def test_the_best_the_worst_and_the_middle_one_come_first() -> None:
    first = choose({1: rows_of(1, [[0.0, 0.25, 0.5], [0.75, 1.0, -1.0]])})[0]
    picked = {why: row.reward for row, why in zip(first.rows, first.reasons, strict=True)}
    assert (picked["best"], picked["worst"], picked["median"]) == (1.0, -1.0, 0.5)
    assert len(first.rows) == 4


def test_groups_with_a_signal_come_before_those_without() -> None:
    steps = {1: rows_of(1, [[0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 0.0]])}
    _, group, *_ = choose(steps)
    assert {row.group for row in group.rows} == {2}


def test_groups_of_the_same_prompt_are_taken_in_every_run() -> None:
    steps = rows_of(1, [[0.0, 1.0]] * 30)
    others = rows_of(1, [[1.0, 0.0]] * 30)
    assert {row.uid for row in choose({1: steps})[1].rows} & {
        row.uid for row in choose({1: others})[1].rows
    }


@given(
    st.dictionaries(
        st.integers(1, 40),
        st.lists(st.lists(st.none() | st.floats(-1, 1), min_size=1, max_size=4), max_size=4),
        max_size=8,
    )
)
def test_every_trajectory_is_chosen_once(rewards: dict[int, list[list[float | None]]]) -> None:
    steps = {step: rows_of(step, own) for step, own in rewards.items()}
    chosen = [(row.step, row.place) for choice in choose(steps) for row in choice.rows]
    everything = [(row.step, row.place) for rows in steps.values() for row in rows]
    assert sorted(chosen) == sorted(everything)


@given(st.integers(0, 300))
def test_any_first_few_steps_are_spread_over_the_run(count: int) -> None:
    order = spread(range(count))
    assert sorted(order) == list(range(count))
    few = sorted(order[:9])
    gaps = np.diff(few)
    if count > 16:
        assert gaps.max() <= 2 * gaps.min() + 2
