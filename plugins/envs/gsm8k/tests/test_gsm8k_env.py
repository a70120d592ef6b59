"""The strict rule: the first ``#### number``, commas aside, equals the reference as a string."""

import pytest

from skyrl_gsm8k.env import Gsm8kEnv, extract_answer
from skyrl_gsm8k.plugin import make_env
from skyrl_kernel.env import Env


def reward(action: str, ground_truth: str) -> float:
    return Gsm8kEnv({"reward_spec": {"ground_truth": ground_truth}}).step(action)["reward"]


@pytest.mark.parametrize(
    ("action", "ground_truth", "expected"),
    [
        ("The answer is #### 42", "42", 1.0),
        ("The answer is #### 42", "43", 0.0),
        ("The answer is 42", "42", 0.0),
        ("#### 1,000", "1000", 1.0),
        ("#### 42.", "42", 0.0),  # the full stop is taken along
        ("#### 42.0", "42", 0.0),
        ("first #### 3, so #### 5", "5", 0.0),  # the first one counts,
        ("first #### 3, so #### 5", "3", 1.0),  # without the comma behind it
        ("#### $42", "42", 0.0),
        ("####42", "42", 0.0),
        ("####  42", "42", 0.0),  # exactly one space
        ("##### 42", "42", 1.0),
        ("#### -7", "-7", 1.0),
        ("#### - 7", "-7", 0.0),
        ("#### 42 apples", "42", 1.0),
        ("#### forty-two", "42", 0.0),
        ("#### ,", "", 1.0),
        ("", "42", 0.0),
    ],
)
def test_the_strict_rule(action: str, ground_truth: str, expected: float) -> None:
    assert reward(action, ground_truth) == expected


def test_an_episode_is_one_step_without_a_reply() -> None:
    env = Gsm8kEnv({"reward_spec": {"ground_truth": "42"}, "max_turns": 5})
    assert env.step("#### 41") == {
        "observations": [],
        "reward": 0.0,
        "done": True,
        "metadata": {"parsed_answer": "41"},
    }


@pytest.mark.parametrize(("action", "expected"), [("#### 42", 1.0), ("#### 41", 0.0), ("42", 0.0)])
def test_exact_match_is_reported(action: str, expected: float) -> None:
    env = Gsm8kEnv({"reward_spec": {"ground_truth": "42"}})
    env.step(action)
    assert env.get_metrics() == {"exact_match": expected}


def test_no_marked_number_is_none() -> None:
    assert extract_answer("42") is None


def test_a_row_without_an_answer_is_refused_with_its_columns() -> None:
    with pytest.raises(ValueError, match=r"'gsm8k' needs .* ground_truth; .* columns: extra_info"):
        Gsm8kEnv({"extra_info": {}})


def test_the_plugin_makes_its_own_env_only() -> None:
    row = {"reward_spec": {"ground_truth": "42"}}
    assert isinstance(make_env("gsm8k", row, 3), Env)
    assert make_env("multiply", row, 3) is None
