"""The base class of envs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.env import TextEnv, mean_metrics, require_ground_truth


@given(
    row=st.none() | st.integers(1, 9), default=st.integers(1, 9), cap=st.none() | st.integers(1, 9)
)
def test_the_row_decides_about_turns_then_the_env_and_a_cap_only_shortens(
    row: int | None, default: int, cap: int | None
) -> None:
    env = TextEnv({"max_turns": row}, max_turns=default, cap=cap)
    limit = default if row is None else row
    assert env.max_turns == (limit if cap is None else min(limit, cap))


def test_neutral_defaults() -> None:
    env = TextEnv({})
    prompt = [{"role": "user", "content": "x"}]
    assert env.init(prompt) == (prompt, {})
    assert env.get_metrics() == {}
    assert env.close() is None
    assert (env.turns, env.max_turns, env.isolate) == (0, 1, False)


def test_metrics_are_averaged_over_the_episodes_that_report_them() -> None:
    assert mean_metrics([{"a": 1, "b": 2}, {"a": 3}]) == {"a": 2.0, "b": 2.0}
    assert mean_metrics([]) == {}


def test_a_row_without_ground_truth_names_the_env_and_the_columns() -> None:
    assert require_ground_truth({"reward_spec": {"ground_truth": 7}}, "multiply") == "7"
    for extras in ({}, {"reward_spec": None}, {"reward_spec": {"ground_truth": None}}):
        with pytest.raises(ValueError, match=r"'multiply' needs the column reward_spec"):
            require_ground_truth(extras, "multiply")
    with pytest.raises(ValueError, match="this row has the columns: answer, split"):
        require_ground_truth({"split": 1, "answer": 2}, "multiply")


@pytest.mark.parametrize("turns", [0, -1, 2.5, "two", [3], float("nan"), float("inf")])
def test_a_number_of_turns_that_is_none_is_refused_with_what_it_must_be(turns: object) -> None:
    with pytest.raises(ValueError, match=r"this row's max_turns is .*; it must be a whole number"):
        TextEnv({"max_turns": turns})
