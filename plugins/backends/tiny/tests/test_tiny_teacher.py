"""The teacher: right in what it does, wrong in some of what it knows, and never off its side."""

import random
import re
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from skyrl_multiply.problems import is_held_out
from skyrl_tiny.teacher import (
    NUM_WRONG_FACTS,
    WRONG_FRAC,
    Teacher,
    training_pairs,
    worked_examples,
)

three_digits = st.integers(100, 999)
one_digit = st.integers(1, 9)
seeds = st.integers(0, 2**32)

LINE = re.compile(r"(\d)\*(\d)(?:\+(\d+))?=(\d+)")


@given(three_digits, one_digit, seeds)
def test_without_wrong_facts_every_answer_is_right(a: int, b: int, seed: int) -> None:
    text = Teacher(seed, num_wrong=0).work_out(a, b, random.Random(seed))
    lines = text.splitlines()
    assert lines[-1] == rf"\boxed{{{a * b}}}"
    assert len(lines) == 4


@given(three_digits, one_digit, seeds)
def test_a_wrong_fact_goes_honestly_through_the_carry(a: int, b: int, seed: int) -> None:
    """Each line adds the carry that the line before left; the answer is what the lines say."""
    teacher = Teacher(seed)
    *lines, box = teacher.work_out(a, b, random.Random(seed)).splitlines()
    carry, answer = 0, ""
    for place, (line, digit) in enumerate(zip(lines, str(a)[::-1], strict=True)):
        found = LINE.fullmatch(line)
        assert found is not None
        x, y, added, result = found.groups()
        assert (x, y) == (digit, str(b))
        assert added == (str(carry) if place else None)
        said = int(result) - carry
        fact = (min(int(x), b), max(int(x), b))
        assert said in {int(x) * b, teacher.wrong.get(fact)}
        answer = (result if place == 2 else str(int(result) % 10)) + answer
        carry = int(result) // 10
    assert box == rf"\boxed{{{answer}}}"


@given(seeds)
def test_wrong_facts_are_a_matter_of_the_seed_and_ten_off(seed: int) -> None:
    teacher = Teacher(seed)
    assert teacher.wrong == Teacher(seed).wrong
    assert len(teacher.wrong) == NUM_WRONG_FACTS
    for (x, y), wrong in teacher.wrong.items():
        assert 2 <= x <= y <= 9
        assert abs(wrong - x * y) == 10
        assert 0 < wrong <= 90


def test_seeds_differ_in_what_they_get_wrong() -> None:
    assert len({tuple(sorted(Teacher(seed).wrong.items())) for seed in range(5)}) == 5


def test_a_wrong_fact_comes_out_wrong_six_times_in_ten_in_either_order() -> None:
    teacher = Teacher(0)
    rng = random.Random(0)
    (x, y), wrong = next((fact, w) for fact, w in teacher.wrong.items() if fact[0] != fact[1])
    said = [teacher.product(*factors, rng) for factors in [(x, y), (y, x)] * 1000]
    assert set(said) == {x * y, wrong}
    # binomial: the standard deviation of the fraction is sqrt(.6 × .4 / 2000) = .011
    assert abs(said.count(wrong) / 2000 - WRONG_FRAC) < 0.05


def test_the_teacher_knows_every_other_fact() -> None:
    teacher, rng = Teacher(0), random.Random(0)
    for x, y in product(range(10), range(10)):
        if (min(x, y), max(x, y)) not in teacher.wrong:
            assert {teacher.product(x, y, rng) for _ in range(5)} == {x * y}


@given(seeds)
def test_no_example_is_of_a_held_out_pair(seed: int) -> None:
    pairs = [pair for pair, _ in worked_examples(seed, 50)]
    assert not any(is_held_out(a, b) for a, b in pairs)
    assert all(100 <= a <= 999 and 1 <= b <= 9 for a, b in pairs)


def test_training_pairs_are_all_that_is_not_held_out() -> None:
    everything = set(product(range(100, 1000), range(1, 10)))
    assert set(training_pairs()) == {pair for pair in everything if not is_held_out(*pair)}
    assert 0.75 < len(training_pairs()) / len(everything) < 0.85


def test_examples_are_a_matter_of_the_seed() -> None:
    assert list(worked_examples(3, 20)) == list(worked_examples(3, 20))
    assert list(worked_examples(3, 20)) != list(worked_examples(4, 20))
