r"""The env's table of rewards, and the corners of ``\boxed{…}``."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.env import Env, mean_metrics
from skyrl_multiply.config import MultiplyConfig
from skyrl_multiply.env import MultiplyEnv, parse_answer
from skyrl_multiply.plugin import make_env

ROW = {"reward_spec": {"method": "rule", "ground_truth": "1234"}}


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        (r"\boxed{1234}", "1234"),
        (r"so it is \boxed{ 1234 }.", "1234"),
        ("\\boxed{\n1234\n}", "1234"),
        (r"\boxed{1} no, \boxed{2}", "1"),  # the first box counts
        (r"\boxed{1,234}", "1,234"),
        (r"\boxed{\text{12}}", r"\text{12"),  # braces do not nest
        (r"\boxed{} \boxed{7}", "7"),  # an empty box is none
        (r"\boxed{ }", ""),
        (r"\boxed 7", None),
        ("boxed{7}", None),
        (r"\boxed{7", None),
        ("1234", None),
        ("", None),
    ],
)
def test_the_answer_is_the_content_of_the_first_box(action: str, parsed: str | None) -> None:
    assert parse_answer(action) == parsed


def test_a_right_answer_ends_the_episode_at_once() -> None:
    env = MultiplyEnv(ROW, max_turns=5)
    assert env.step(r"\boxed{1234}") == {
        "observations": [],
        "reward": 1.0,
        "done": True,
        "metadata": {"parsed_answer": "1234"},
    }
    assert env.get_metrics() == {"exact_match": 1.0, "steps": 1.0, "exact_match_first_turn": 1.0}


@pytest.mark.parametrize("answer", ["1,234", "1234.0", "01234", "+1234", "1234 ", " 1234"])
def test_answers_are_compared_as_stripped_strings(answer: str) -> None:
    reward = MultiplyEnv(ROW, max_turns=1).step(rf"\boxed{{{answer}}}")["reward"]
    assert reward == (1.0 if answer.strip() == "1234" else 0.5)


@pytest.mark.parametrize(
    ("action", "reward"), [(r"\boxed{1}", 0.5), ("1234", 0.0), (r"\boxed{1234}", 1.0)]
)
def test_the_last_turn_ends_the_episode_whatever_is_said(action: str, reward: float) -> None:
    env = MultiplyEnv(ROW, max_turns=2)
    assert not env.step("hm")["done"]
    last = env.step(action)
    assert (last["reward"], last["done"], last["observations"]) == (reward, True, [])


def test_a_wrong_answer_is_quoted_while_turns_are_left() -> None:
    step = MultiplyEnv(ROW).step(r"\boxed{ 99 }")
    assert (step["reward"], step["done"]) == (0.0, False)
    (message,) = step["observations"]
    assert message["role"] == "user"
    assert "99 is not the product" in message["content"]
    assert "try again" in message["content"]


def test_a_missing_box_is_asked_for_while_turns_are_left() -> None:
    step = MultiplyEnv(ROW).step("1234")
    assert (step["reward"], step["done"], step["metadata"]) == (0.0, False, {"parsed_answer": None})
    (message,) = step["observations"]
    assert r"\boxed{your_answer}" in message["content"]


def test_the_demo_gives_nothing_for_a_wrong_box() -> None:
    env = MultiplyEnv(ROW, max_turns=1, wrong_box_reward=0.0)
    assert env.step(r"\boxed{1}")["reward"] == 0.0


@given(
    wrong=st.integers(0, 6),
    own=st.integers(1, 5),
    row=st.none() | st.integers(1, 5),
    cap=st.none() | st.integers(1, 5),
)
def test_an_episode_is_as_long_as_the_row_else_the_env_says_capped_by_the_generator(
    wrong: int, own: int, row: int | None, cap: int | None
) -> None:
    env = MultiplyEnv(ROW | {"max_turns": row}, max_turns=own, cap=cap)
    limit = min(row or own, cap or 9)
    rewards = []
    done = False
    while not done:
        step = env.step(r"\boxed{1234}" if env.turns == wrong else "no idea")
        rewards.append(step["reward"])
        done = step["done"]
    solved = wrong < limit
    assert len(rewards) == (wrong + 1 if solved else limit)
    assert sum(rewards) == float(solved)
    metrics = env.get_metrics()
    assert (metrics["exact_match"], metrics["steps"]) == (float(solved), float(len(rewards)))


RIGHT, WRONG, NONE = r"\boxed{1234}", r"\boxed{1}", "no idea"


@pytest.mark.parametrize(
    ("answers", "first", "rescued"),
    [
        ([RIGHT], 1.0, None),  # nothing to rescue: not in the rate's denominator
        ([WRONG, RIGHT], 0.0, 1.0),
        ([WRONG, NONE, RIGHT], 0.0, 1.0),
        ([WRONG, WRONG, WRONG], 0.0, 0.0),
        ([WRONG], 0.0, 0.0),  # cut off before it could try again: not rescued
    ],
)
def test_an_episode_says_whether_its_first_answer_was_right_and_else_whether_a_later_one_was(
    answers: list[str], first: float, rescued: float | None
) -> None:
    env = MultiplyEnv(ROW, max_turns=3)
    for answer in answers:
        env.step(answer)
    metrics = env.get_metrics()
    assert metrics["exact_match_first_turn"] == first
    assert metrics.get("rescued") == rescued


def test_with_one_turn_there_is_no_first_of_several_and_nothing_to_rescue() -> None:
    env = MultiplyEnv(ROW, max_turns=1)
    env.step(WRONG)
    assert env.get_metrics() == {"exact_match": 0.0, "steps": 1.0}
    assert set(MultiplyEnv(ROW, max_turns=2).get_metrics()) == {"exact_match", "steps"}  # no answer


@pytest.mark.parametrize("mean", [MultiplyEnv.aggregate_metrics, mean_metrics])
def test_the_mean_of_rescued_is_the_rate_among_the_first_answers_that_were_wrong(
    mean: Callable[[Sequence[Mapping[str, float]]], dict[str, float]],
) -> None:
    # 5 right at once; of the 4 others 1 comes right later: the rate is 1 / 4, not 1 / 9.
    episodes = [[RIGHT]] * 5 + [[WRONG, RIGHT]] + [[WRONG, WRONG]] * 3
    metrics = []
    for answers in episodes:
        env = MultiplyEnv(ROW, max_turns=2)
        for answer in answers:
            env.step(answer)
        metrics.append(env.get_metrics())
    found = mean(metrics)
    assert found["rescued"] == pytest.approx(1 / 4)
    assert found["exact_match_first_turn"] == pytest.approx(5 / 9)
    assert found["exact_match"] == pytest.approx(6 / 9)


def test_a_row_without_an_answer_is_refused_with_its_columns() -> None:
    with pytest.raises(ValueError, match=r"'multiply' needs .* ground_truth; .* columns: db, id"):
        MultiplyEnv({"id": 3, "db": "x"})


def test_the_plugin_makes_its_own_env_from_its_own_settings() -> None:
    settings = {MultiplyConfig: MultiplyConfig(max_turns=3, wrong_box_reward=0.25)}
    env = make_env("multiply", settings, ROW, 2)
    assert isinstance(env, Env)
    assert env.max_turns == 2
    env.step("")
    assert env.step(r"\boxed{1}")["reward"] == 0.25
    assert make_env("gsm8k", settings, ROW, 2) is None


def test_the_envs_own_limit_stands_where_the_generator_has_none() -> None:
    env = make_env("multiply", {MultiplyConfig: MultiplyConfig()}, ROW, None)
    assert env is not None
    assert env.max_turns == 5
