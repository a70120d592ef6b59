"""What a completion asks or answers, and when an answer matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_search.judge import extract_answer, extract_query, is_match, targets_of


@pytest.mark.parametrize(
    ("completion", "query"),
    [
        ("<search>pears</search>", "pears"),
        ("I think.\n<search>\n pears  and apples \n</search> bye", "pears  and apples"),
        ("<search>one</search><search>two</search>", "one"),  # the first one
        ("<search></search>", ""),
        ("<search>pears", None),
        ("pears</search>", None),
        ("</search>pears<search>", None),
        ("<Search>pears</Search>", None),
        ("", None),
    ],
)
def test_the_first_search_is_the_query(completion: str, query: str | None) -> None:
    assert extract_query(completion) == query


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer> Paris </answer>", "Paris"),
        ("<answer>Rome</answer> no, <answer>Paris</answer>", "Paris"),  # the last one
        ("<answer>Par\nis</answer>", "Par\nis"),
        ("<answer>Paris", None),
        ("Paris</answer>", None),
        ("</answer>Paris<answer>", None),
        ("", None),
    ],
)
def test_the_last_answer_counts(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("answer", "targets", "right"),
    [
        ("Paris", ("Paris",), True),
        ("  pARIS. ", ("Paris",), True),
        ("The Beatles", ("beatles",), True),
        ("a pear and an apple", ("pear and apple",), True),
        ("U.S.", ("us",), True),
        ("theatre", ("atre",), False),  # articles are whole words
        ("Paris, France", ("Paris",), False),  # exact, not contained
        ("1,000", ("1000",), True),
        ("one", ("two", "One"), True),
        ("", ("Paris",), False),
        ("the", ("a",), True),  # both are nothing
        ("Beyoncé", ("Beyonce",), False),
    ],
)
def test_case_articles_punctuation_and_space_do_not_count(
    answer: str, targets: tuple[str, ...], right: bool
) -> None:
    assert is_match(answer, targets) is right


@given(st.text())
def test_a_text_matches_itself_shouted_and_spaced_out(text: str) -> None:
    assert is_match(f"  {text} \n", (text,))


@pytest.mark.parametrize(("target", "texts"), [("x", ("x",)), (["x", "y"], ("x", "y"))])
def test_a_row_has_one_target_or_several(target: object, texts: tuple[str, ...]) -> None:
    assert targets_of({"reward_spec": {"ground_truth": {"target": target}}}) == texts


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"reward_spec": None},
        {"reward_spec": {"ground_truth": "x"}},
        {"reward_spec": {"ground_truth": {"target": []}}},
        {"reward_spec": {"ground_truth": {"target": [1]}}},
    ],
)
def test_a_row_without_target_is_refused_with_what_it_has(row: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=r"'search' needs .* reward_spec\.ground_truth\.target; this row has"
    ):
        targets_of(row | {"id": 3})
