"""A row becomes a prompt, or an error that names source, row, column and the need."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.data import check_row
from skyrl_kernel.errors import DataError
from skyrl_kernel.records import Prompt

USER = {"role": "user", "content": "6 * 7"}


def check(row: dict[str, Any]) -> Prompt:
    return check_row(row, source="train.parquet", index=17, uid="0:17", default_env="multiply")


def test_all_of_skyrls_columns_arrive_where_they_belong() -> None:
    prompt = check(
        {
            "data_source": "synthetic_multiply",
            "prompt": [USER],
            "env_class": "gsm8k",
            "reward_spec": {"method": "rule", "ground_truth": "42"},
            "extra_info": {"split": "train"},
            "db_id": 3,
        }
    )
    assert (prompt.uid, prompt.messages, prompt.env_class) == ("0:17", (USER,), "gsm8k")
    assert prompt.data_source == "synthetic_multiply"
    assert prompt.extras == {
        "data_source": "synthetic_multiply",
        "reward_spec": {"method": "rule", "ground_truth": "42"},
        "extra_info": {"split": "train"},
        "db_id": 3,
    }


@pytest.mark.parametrize("row", [{}, {"env_class": None}, {"env_class": ""}])
def test_a_row_that_names_no_env_gets_the_default(row: dict[str, Any]) -> None:
    assert check({"prompt": [USER], **row}).env_class == "multiply"


def test_fields_that_parquet_filled_with_null_are_left_out_of_messages() -> None:
    prompt = check({"prompt": [USER | {"name": None}, USER | {"name": "Ada"}]})
    assert prompt.messages == (USER, USER | {"name": "Ada"})


def test_a_missing_prompt_lists_the_columns_found() -> None:
    with pytest.raises(
        DataError,
        match=r"'train\.parquet', row 17 \(from 0\): no column 'prompt'.*found: question, answer",
    ):
        check({"question": "6 * 7", "answer": "42"})


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "6 * 7"}, r"column 'prompt': found str '6 \* 7'; it must be a non-empty list"),
        ({"prompt": None}, "column 'prompt': found null"),
        ({"prompt": []}, "column 'prompt': found an empty list"),
        ({"prompt": ["6 * 7"]}, r"message 0 is str '6 \* 7'"),
        ({"prompt": [USER, {"role": "user"}]}, "'content' of message 1 is null; it must be a str"),
        ({"prompt": [{"role": 1, "content": ""}]}, "'role' of message 0 is int 1"),
        ({"prompt": [{"role": "", "content": ""}]}, "'role' of message 0 is empty"),
        ({"prompt": [USER], "env_class": 3}, "column 'env_class': found int 3"),
        ({"prompt": [USER], "data_source": ["a"]}, r"column 'data_source': found list \['a'\]"),
        (
            {"prompt": [USER], "reward_spec": "42"},
            "column 'reward_spec': found str '42'; .* struct",
        ),
    ],
)
def test_a_wrong_value_is_shown_with_its_place_and_the_need(
    row: dict[str, Any], found: str
) -> None:
    with pytest.raises(DataError, match=rf"^data 'train\.parquet', row 17 \(from 0\)[,:].*{found}"):
        check(row)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(DataError) as caught:
        check({"prompt": "x" * 10_000})
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "env_class", "data_source", "reward_spec", "other"]), json_values
    )
)
def test_no_row_does_anything_but_pass_or_raise_a_data_error(row: dict[str, Any]) -> None:
    try:
        prompt = check(row)
    except DataError:
        return
    assert prompt.messages
    assert all(isinstance(message["content"], str) for message in prompt.messages)


@pytest.mark.parametrize(
    ("columns", "messages"),
    [
        ({}, []),
        ({"prompt": None}, []),
        ({"prompt": "6 * 7"}, [{"role": "user", "content": "6 * 7"}]),
        (
            {"prompt": [{"role": "system", "content": "x", "name": None}]},
            [{"role": "system", "content": "x"}],
        ),
    ],
)
def test_a_row_that_is_not_played_may_have_no_prompt_or_a_text(
    columns: dict[str, Any], messages: list[dict[str, str]]
) -> None:
    row = {"answer": "42", **columns}
    found = check_row(row, source="a.jsonl", index=3, uid="0:3", default_env="", needs_prompt=False)
    assert list(found.messages) == messages
    assert found.extras == {"answer": "42"}


def test_a_prompt_of_another_type_is_refused_even_there() -> None:
    with pytest.raises(DataError, match=r"row 3 .*column 'prompt': found int 5; it must be a"):
        check_row(
            {"prompt": 5}, source="a.jsonl", index=3, uid="0:3", default_env="", needs_prompt=False
        )
