"""Both envs beside those of the package skyrl-gym: equal rewards, endings and replies."""

import random

import pytest

from skyrl_gsm8k.env import Gsm8kEnv
from skyrl_gsm8k.multi_turn import Gsm8kMultiTurnEnv

EPISODES = 1500
FRAMES = (
    "#### {}",
    "So the answer is #### {}",
    "#### {}.",
    "#### {} apples",
    "#### ${}",
    "####{}",
    "####  {}",
    "##### {}",
    "#### -{}",
    "#### {}.0",
    "#### {},",
    "#### {}\n#### 5",
    "#### 5, no: #### {}",
    "The answer is {}.",
    "<<3*4=12>>12\n#### {}",
    "日本 #### {} 🎲",
    "#### \n{}",
    "#### ,{}",
)


def answer_to(rng: random.Random, truth: str) -> str:
    """Half the numbers are right; most frames are well-formed."""
    number = truth if rng.random() < 0.7 else str(rng.randint(-20, 20_000))
    if rng.random() < 0.2 and number.lstrip("-").isdigit():
        number = f"{int(number):,}"
    return (FRAMES[0] if rng.random() < 0.5 else rng.choice(FRAMES)).format(number)


@pytest.mark.slow
def test_gsm8k_gives_what_skyrl_gym_gives() -> None:
    theirs = pytest.importorskip("skyrl_gym.envs.gsm8k.env", reason="not checked: no skyrl-gym")
    rng = random.Random(1)
    right = 0
    for _ in range(EPISODES):
        truth = str(rng.choice([rng.randint(-20, 20), rng.randint(0, 20_000), 0.5]))
        row = {"reward_spec": {"method": "rule", "ground_truth": truth}}
        action = answer_to(rng, truth)
        own, other = Gsm8kEnv(row).step(action), theirs.GSM8kEnv(extras=row).step(action)
        assert (own["reward"], own["done"]) == (other["reward"], other["done"]), (truth, action)
        right += own["reward"] == 1.0
    assert EPISODES / 3 < right < EPISODES


@pytest.mark.slow
def test_every_turn_of_gsm8k_multi_turn_is_as_skyrl_gyms() -> None:
    theirs = pytest.importorskip(
        "skyrl_gym.envs.gsm8k.multi_turn_env", reason="not checked: no skyrl-gym"
    )
    rng = random.Random(2)
    turns = right = 0
    for _ in range(EPISODES):
        truth = str(rng.choice([rng.randint(-20, 20), rng.randint(0, 20_000), 0.5]))
        row = {
            "reward_spec": {"method": "rule", "ground_truth": truth},
            "extra_info": {"max_turns": rng.randint(1, 6)} if rng.random() < 0.7 else {},
        }
        if rng.random() < 0.3:
            row["max_turns"] = rng.randint(1, 6)
        own, other = Gsm8kMultiTurnEnv(row), theirs.GSM8kMultiTurnEnv(extras=row)
        done = False
        while not done:
            action = answer_to(rng, truth)
            one, two = own.step(action), other.step(action)
            for key in ("reward", "done", "observations"):
                assert one[key] == two[key], (row, action)
            done = one["done"]
            turns, right = turns + 1, right + (one["reward"] == 1.0)
        assert own.get_metrics()["avg_steps"] == other.get_metrics()["steps"]
    assert turns / 3 < right < turns
