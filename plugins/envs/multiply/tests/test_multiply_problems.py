"""Problems follow from the seed; held-out pairs are never trained on."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from skyrl_kernel.errors import DataError, UsageError
from skyrl_multiply.config import MultiplyConfig, ProblemOptions
from skyrl_multiply.plugin import load_dataset
from skyrl_multiply.problems import (
    SYSTEM_PROMPT,
    bucket,
    draw_pairs,
    is_held_out,
    make_table,
    messages,
)

digits = st.integers(1, 6)
num_digits = st.one_of(digits.map(str), st.builds("{}x{}".format, digits, digits))
options = st.builds(
    ProblemOptions,
    num_digits=num_digits,
    train_size=st.integers(1, 150),
    test_size=st.integers(1, 20),
    seed=st.integers(),
)


@given(options)
@settings(max_examples=50)
def test_train_and_held_out_never_meet_not_even_with_swapped_factors(one: ProblemOptions) -> None:
    train = {frozenset(pair) for pair in draw_pairs(one, "train")}
    held_out = {frozenset(pair) for pair in draw_pairs(one, "validation")}
    assert not train & held_out


@given(options, options)
@settings(max_examples=50)
def test_nor_across_seeds_sizes_and_digits(one: ProblemOptions, other: ProblemOptions) -> None:
    assert not set(draw_pairs(one, "train")) & set(draw_pairs(other, "validation"))


@given(options)
@settings(max_examples=50)
def test_factors_have_the_digits_asked_for_and_rows_the_number(one: ProblemOptions) -> None:
    for split, size in (("train", one.train_size), ("validation", one.test_size)):
        pairs = draw_pairs(one, split)
        assert len(pairs) == size
        assert {(len(str(a)), len(str(b))) for a, b in pairs} == {one.digits}


@given(options)
@settings(max_examples=25)
def test_the_same_options_give_the_same_problems(one: ProblemOptions) -> None:
    again = ProblemOptions(**one.model_dump())
    for split in ("train", "validation"):
        assert draw_pairs(one, split) == draw_pairs(again, split)


@given(options)
@settings(max_examples=25)
def test_asking_for_more_only_adds_rows_at_the_end(one: ProblemOptions) -> None:
    more = one.model_copy(update={"train_size": one.train_size + 10, "seed": one.seed})
    assert draw_pairs(more, "train")[: one.train_size] == draw_pairs(one, "train")


def test_another_seed_gives_other_problems() -> None:
    one, other = (ProblemOptions(num_digits="4", seed=seed) for seed in (1, 2))
    assert draw_pairs(one, "train") != draw_pairs(other, "train")


def test_the_order_of_factors_does_not_change_the_bucket() -> None:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    assert all(bucket(a, b) == bucket(b, a) for a, b in pairs)


def test_the_split_is_fixed_for_good() -> None:
    # sha256("12*34") as a number, mod 10, and so on: a published split must not move. Do not
    # "fix" this test: other values would put held-out problems of earlier runs into training.
    assert [bucket(12, 34), bucket(2, 3), bucket(999, 7), bucket(1, 1)] == [1, 0, 2, 9]


def test_about_a_fifth_is_held_out_in_the_small_and_in_the_large() -> None:
    # 81 * 81 / 2 pairs and more: two standard deviations are below 0.01.
    for low, high in ((10, 100), (1000, 1090)):
        pairs = [(a, b) for a in range(low, high) for b in range(low, high)]
        assert abs(sum(is_held_out(*pair) for pair in pairs) / len(pairs) - 0.2) < 0.02


def test_training_pairs_repeat_only_after_all_were_used() -> None:
    # 9 * 9 = 81 pairs of single digits, 25 of them held out, so 56 to train on.
    pairs = draw_pairs(ProblemOptions(num_digits="1", train_size=130), "train")
    assert len(set(pairs[:56])) == 56
    assert set(pairs[56:112]) == set(pairs[:56])
    assert pairs[56:112] != pairs[:56]
    assert max(Counter(pairs).values()) == 3  # 130 = 56 + 56 + 18


def test_all_held_out_pairs_can_be_had_and_not_one_more() -> None:
    every = {(a, b) for a in range(1, 10) for b in range(1, 10) if is_held_out(a, b)}
    drawn = draw_pairs(ProblemOptions(num_digits="1", test_size=25), "validation")
    assert len(drawn) == 25
    assert set(drawn) == every
    with pytest.raises(
        UsageError, match=r"test_size=26 .* num_digits=1 there are 25: lower test_size or raise"
    ):
        draw_pairs(ProblemOptions(num_digits="1", test_size=26), "validation")


def test_a_huge_space_is_drawn_from_without_listing_it() -> None:
    pairs = draw_pairs(ProblemOptions(num_digits="30", train_size=500), "train")
    assert len(set(pairs)) == 500


def test_draws_are_spread_over_the_whole_space() -> None:
    # Mean of 4000 uniform numbers in [100, 999]: 549.5 +- 260 / sqrt(4000) = 4.1.
    pairs = draw_pairs(ProblemOptions(num_digits="3", train_size=4000), "train")
    for factors in zip(*pairs, strict=True):
        assert abs(sum(factors) / 4000 - 549.5) < 20


@pytest.mark.parametrize("text", ["0", "x3", "3x", "2x2x2", "-1", "two", "100", "2.0", "٣", ""])
def test_unreadable_digits_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a number of digits from 1 to 99, nor two"):
        ProblemOptions(num_digits=text)


def test_digits_may_be_written_as_a_number() -> None:
    assert ProblemOptions.model_validate({"num_digits": 4}).digits == (4, 4)


def test_a_row_has_skyrls_columns() -> None:
    one = ProblemOptions(num_digits="3x1", train_size=1)
    ((a, b),) = draw_pairs(one, "train")
    assert make_table(one, "train").to_pylist() == [
        {
            "data_source": "synthetic_multiply",
            "prompt": [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": f"{a} * {b}"},
            ],
            "env_class": "multiply",
            "reward_spec": {"method": "rule", "ground_truth": str(a * b)},
            "extra_info": {"num_digits": "3x1", "split": "train"},
        }
    ]


def test_plain_digits_are_a_number_and_the_other_split_is_called_test() -> None:
    (row,) = make_table(ProblemOptions(test_size=1), "validation").to_pylist()
    assert row["extra_info"] == {"num_digits": 2, "split": "test"}


def test_the_prompt_asks_for_the_box() -> None:
    system, user = messages(12, 34)
    assert r"\boxed{answer}" in system["content"]
    assert user == {"role": "user", "content": "12 * 34"}


def test_the_plugin_serves_its_sources_and_no_others() -> None:
    config = {MultiplyConfig: MultiplyConfig(train_size=3, test_size=2)}
    sizes = [
        load_dataset(f"multiply:{split}", config).num_rows for split in ("train", "validation")
    ]
    assert sizes == [3, 2]
    assert load_dataset("gsm8k:train", config) is None
    with pytest.raises(DataError, match=r"'multiply:test': .*multiply:train and multiply:valid"):
        load_dataset("multiply:test", config)
