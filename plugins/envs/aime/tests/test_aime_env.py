"""The reward of ``aime``, and how answers are brought to one spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_aime.env import AimeEnv, extract_answer
from skyrl_aime.normalise import normalise
from skyrl_aime.plugin import make_env
from skyrl_kernel.env import Env
from skyrl_kernel.testing.contracts import EnvContract


class TestAime(EnvContract):
    prompt = ({"role": "user", "content": "Find x."},)
    actions = ("Answer: 42", r"Answer: \boxed{41}", "42", "Answer:", r"Answer: \frac")

    def make(self, cap: int | None = None) -> Env:
        return AimeEnv({"reward_model": {"ground_truth": "42"}})


def reward(action: str, ground_truth: object) -> float:
    return AimeEnv({"reward_model": {"ground_truth": ground_truth}}).step(action)["reward"]


@pytest.mark.parametrize(
    ("action", "ground_truth", "expected"),
    [
        ("Answer: 42", "42", 1.0),
        (r"Answer: \boxed{42}", "42", 1.0),
        (r"Answer: \boxed{43}", "42", -1.0),
        (r"Answer: \frac{1}{2}", r"\frac{1}{2}", 1.0),
        ("Answer: 0.5", r"\frac{1}{2}", -1.0),  # spelling, not mathematics
        (r"Answer: \text{forty-two}", "42", -1.0),
        (r"<|im_start|>Answer: \boxed{42}<|im_end|>", "42", 1.0),
        (r"Answer: \boxed{42}im_end|>", "42", -1.0),
        ("Answer: 42<|eot_id|>", "42", 1.0),
        ("Answer: 42|eot_id|>", "42", -1.0),
        ("answer :  42", "42", 1.0),
        ("ANSWER:\n42", "42", 1.0),
        ("Answer: 42\nI am sure.", "42", 1.0),
        ("Answer: 42. I am sure.", "42", -1.0),
        ("Answer: 41\nAnswer: 42", "42", 1.0),  # the last one counts
        ("Answer: 42\nAnswer: 41", "42", -1.0),
        ("Answer: 42. Answer: 41", "41", -1.0),  # a line is read from its first "Answer:" on
        ("Final answer: 42", "42", 1.0),
        ("The answer is 42", "42", -1.0),
        ("Answer: x = y = 42", "42", 1.0),
        ("Answer: 1,042", "1042", 1.0),
        ("Answer: 1042", "1,042", 1.0),
        ("Answer: 042", "42", -1.0),
        ("Answer: $42$ degrees", "42", 1.0),
        ("Answer: about $42$, or $43$", "42", 1.0),
        ("Answer: [INVALID]", "[INVALID]", 1.0),  # as SkyRL's; no reference is that
        ("Answer: 42", 42, 1.0),
        ("", "42", -1.0),
    ],
)
def test_the_last_answer_counts(action: str, ground_truth: object, expected: float) -> None:
    assert reward(action, ground_truth) == expected


def test_only_the_end_of_a_completion_is_searched() -> None:
    # 12 characters of "Answer: 42 \n" and 288 others are the last 300.
    assert reward("Answer: 42 \n" + "." * 288, "42") == 1.0
    assert reward("Answer: 42 \n" + "." * 289, "42") == -1.0


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac123", r"\frac{1}{2}3"),
        (r"\frac{12}{34}", r"\frac{12}{34}"),
        (r"\frac 1 2", r"\frac{1}{2}"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"\sqrt 23", r"\sqrt{2}3"),
        (r"3\sqrt{2}", r"3\sqrt{2}"),
        ("12 cm", "12"),
        ("12 square meters", "12"),
        (r"12\text{ inches}", "12"),
        (r"12 \mbox{ cm}^2", "12"),
        (r"30^\circ", "30"),
        (r"30^{\circ}", "30"),
        (r"7\mathrm{th}", "7"),
        (r"12{,}345", "12345"),
        (r"12,\!345", "12345"),
        (r"\text{A and B}", "AandB"),
        (r"1 \text{ and } 2", "12"),  # an odd one: two answers read as one number
        (r"\textbf{(C)}", "(C)"),
        (r"\overline{AB}", "AB"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ('"yes"', "yes"),
        (r"\$5", "5"),
        ("$5.$", "5"),
        ("a cat", "cat"),
        ("an ox", "ox"),
        ("issue", "is"),  # "sue" is struck out wherever it stands
        ("(1,2)", "(1,2)"),
        ("1,2", "12"),
        ("f(x)=3", "3"),
        ("", ""),
    ],
)
def test_one_spelling(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


@given(st.integers(0, 10**9), st.sampled_from(["{}", "${}$", r"\boxed{{{}}}", "{} cm", "x={}"]))
def test_a_number_is_the_same_in_every_frame(number: int, frame: str) -> None:
    assert normalise(frame.format(f"{number:,}")) == normalise(frame.format(number)) == str(number)


@given(st.text())
def test_any_text_has_a_normal_form_without_dollar_signs_and_spaces(text: str) -> None:
    normal = normalise(text)
    assert "$" not in normal
    assert " " not in normal


def test_a_completion_without_an_answer_is_invalid() -> None:
    assert extract_answer("42") == "[INVALID]"


def test_a_step_reports_what_was_read() -> None:
    env = AimeEnv({"reward_spec": {"ground_truth": "42"}})
    assert env.step("Answer: 41") == {
        "observations": [],
        "reward": -1.0,
        "done": True,
        "metadata": {"acc": False, "pred": "41"},
    }
    assert env.get_metrics() == {"exact_match": 0.0}


def test_reward_model_comes_before_reward_spec() -> None:
    row = {"reward_model": {"ground_truth": "1"}, "reward_spec": {"ground_truth": "2"}}
    assert AimeEnv(row).step("Answer: 1")["metadata"]["acc"]
    assert AimeEnv(row | {"reward_model": None}).step("Answer: 2")["metadata"]["acc"]


def test_a_row_without_an_answer_is_refused_with_its_columns() -> None:
    with pytest.raises(ValueError, match=r"'aime' needs the column reward_model .* columns: id"):
        AimeEnv({"id": 1})


def test_the_plugin_makes_its_own_env_only() -> None:
    row = {"reward_model": {"ground_truth": "42"}}
    assert isinstance(make_env("aime", row), AimeEnv)
    assert make_env("gsm8k", row) is None
