"""The teacher: right in what it does, wrong in some of what it knows, and never off its side."""

import random
import re
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.plugins import discover
from skyrl_multiply.env import MultiplyEnv
from skyrl_multiply.problems import is_held_out, messages
from skyrl_tiny.recipe import RETRY
from skyrl_tiny.teacher import (
    NUM_WRONG_FACTS,
    WRONG_FRAC,
    Teacher,
    second_tries,
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


# --- second tries -------------------------------------------------------------------------


@given(seeds)
def test_a_second_try_follows_a_wrong_answer_and_is_the_same_again_or_right(seed: int) -> None:
    careful = Teacher(0, num_wrong=0)
    for (a, b), attempt, second in second_tries(seed, 20, wrong_frac=0.9, stubborn_frac=0.5):
        assert not is_held_out(a, b)
        assert rf"\boxed{{{a * b}}}" not in attempt
        assert second in {attempt, careful.work_out(a, b, random.Random(0))}


def test_the_teacher_insists_as_often_as_it_is_told_to() -> None:
    def insists(stubborn_frac: float) -> float:
        tries = list(second_tries(0, 1000, wrong_frac=0.9, stubborn_frac=stubborn_frac))
        return sum(attempt == second for _, attempt, second in tries) / len(tries)

    # binomial: the standard deviation of the fraction is sqrt(.7 × .3 / 1000) = .014
    assert insists(0.7) == pytest.approx(0.7, abs=0.06)
    assert (insists(0.0), insists(1.0)) == (0.0, 1.0)


def test_examples_of_both_kinds_are_what_the_env_would_have_said() -> None:
    recipe = replace(RETRY, steps=1, batch_size=200)
    lengths = []
    for conversation, text in recipe.examples(3):
        lengths.append(len(conversation))
        system, question, *rest = conversation
        a, b = map(int, question["content"].split(" * "))
        assert [system, question] == messages(a, b)
        if rest:
            attempt, said = rest
            env = MultiplyEnv({"reward_spec": {"ground_truth": str(a * b)}}, max_turns=2)
            assert attempt["role"] == "assistant"
            assert env.step(attempt["content"])["observations"] == [said]
        assert text.splitlines()[-1].startswith(r"\boxed{")
    assert set(lengths) == {2, 4}
    # binomial: half of 200 with a standard deviation of 7
    assert abs(lengths.count(4) - 100) < 35


def test_the_demo_over_two_turns_is_the_demo_but_for_its_model_its_name_and_its_turns() -> None:
    one, two = (discover().find(name).manifest.preset for name in ("demo", "demo_multi_turn"))
    assert {key for key in one | two if one.get(key) != two.get(key)} == {
        "trainer.policy.model.path",
        "trainer.run_name",
        "environment.multiply.max_turns",
    }
