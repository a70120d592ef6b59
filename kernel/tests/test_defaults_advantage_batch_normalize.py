"""Advantages of a batch shifted and scaled to mean 0 and variance 1."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.defaults.advantage_batch_normalize import normalized
from skyrl_kernel.plan import make_plan
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import TokenAdvantages

Row = tuple[Sequence[float], Sequence[int]]
"""Advantages and loss mask."""


def of(*groups: Sequence[Row], returns: bool = False) -> list[list[list[float]]]:
    """Group by group and row by row, what normalising makes of these advantages."""

    def entry(values: Sequence[float], mask: Sequence[int]) -> TokenAdvantages:
        return TokenAdvantages(
            advantages=np.array(values, np.float32),
            loss_mask=np.array(mask, dtype=bool),
            returns=np.array(values, np.float32) if returns else None,
        )

    inner = Advantage(fn=lambda _: [[(entry(*row),) for row in group] for group in groups])
    credited = normalized(inner)([])
    if returns:
        return [
            [row.returns.tolist() for (row,) in group if row.returns is not None]
            for group in credited
        ]
    return [[row.advantages.tolist() for (row,) in group] for group in credited]


def test_mean_and_variance_are_of_the_trained_tokens_of_all_groups() -> None:
    """In SkyRL the padding counts in the mean, and is shifted: [-1, -⅓, -5/3 | ⅓, 1, 5/3]."""
    # 1, 2, 3, 4, 5: mean 3, variance 2
    got = of([([1, 2, 0], [1, 1, 0])], [([3, 4, 5], [1, 1, 1])])
    unit = 2**-0.5
    assert got == [
        [pytest.approx([-2 * unit, -unit, 0])],
        [pytest.approx([0, unit, 2 * unit])],
    ]


def test_what_a_critic_learns_from_stays() -> None:
    assert of([([1, 2, 3], [1, 1, 1])], returns=True) == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    "rows",
    [
        [([7, 7], [1, 1])],  # equal: nothing is blown up
        [([7], [1])],  # one token
    ],
)
def test_equal_advantages_become_nothing(rows: list[Row]) -> None:
    assert of(rows) == [[[0] * len(rows[0][0])]]


def test_a_batch_without_trained_tokens_stays_as_it_is() -> None:
    assert of([([1, 2], [0, 0])]) == [[[1, 2]]]
    assert of() == []


@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4), min_size=1, max_size=4
    )
)
def test_the_batch_has_mean_0_and_variance_1_or_less(drawn: list[list[float]]) -> None:
    got = np.concatenate([row for (row,) in of(*[[(row, [1] * len(row))] for row in drawn])])
    assert got.mean() == pytest.approx(0, abs=1e-4)
    assert got.var() <= 1 + 1e-4
    if np.concatenate(drawn).var() > 1e-4:
        assert got.var() == pytest.approx(1, abs=1e-3)


def test_the_switch_puts_it_around_the_estimator() -> None:
    words = ["trainer.algorithm.advantage_batch_normalize=true"]
    plan = make_plan(["demo"], overrides=words)
    assert [entry.name for entry in plan.stages["advantage"].wrappers] == [
        "advantage_batch_normalize"
    ]
