"""Rewards and results of tools equal those of the skyrl-gym package, on random episodes."""

import random
import shutil

import pytest

from skyrl_searchcode.config import SearchcodeConfig
from skyrl_searchcode.env import SearchcodeEnv
from skyrl_searchcode.tools import make_sandbox, make_tools

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("bwrap") is None,
        reason="bubblewrap is not installed: searchcode was not compared with skyrl-gym",
    ),
]


class Never:
    """Nothing is searched for here: the package's search tool takes no address."""

    def search(self, query: str) -> list[str]:
        raise AssertionError(query)


PROGRAMS = ["print({n})", "print('#### {n}')", "print('a', {n}, '\\n')", "x = {n}", "raise ValueError",
            "import sys; print({n}, file=sys.stderr)", "print({n}", "print('ü')", "exit(3)"]  # fmt: skip
NUMBERS = ["#### {n}", "#### {n} #### 5", "#### {n}.", "####{n}", "#### ${n}", "#### {n},000", "{n}",
           "#### x #### {n}", "#### -{n}", "#### {n}\n#### 1"]  # fmt: skip


def turn(rng: random.Random, n: int) -> str:
    """One reply: a call, a solution, or something else."""
    number = rng.choice([NUMBERS[0]] * 12 + NUMBERS).format(
        n=rng.choice([n, n, n, rng.randint(0, 9)])
    )
    program = rng.choice(PROGRAMS).format(n=n)
    call = f"<tool><python>{program}</python></tool>"
    solution = f"so <solution>{number}</solution>"
    return rng.choice(
        [call] * 4 + [solution] * 6 + [
            f"<tool>\n<python>\n{program}\n</python>\n</tool>", f"{number} {call}", f"<solution>{number}",
            f"{number}</solution>", f"<tool>{program}</tool>", f"<tool><fly>{n}</fly></tool>", number, "",
            f"<tool><python>{program}</tool>", f"<python>{program}</python>", f"</solution>{number}<solution>",
        ]
    )  # fmt: skip


def test_episodes_are_those_of_skyrl_gym() -> None:
    skyrl_gym = pytest.importorskip("skyrl_gym", reason="skyrl-gym is not installed: not compared")
    tools = make_tools(Never(), make_sandbox(SearchcodeConfig(), 60.0))
    rng = random.Random(5)
    rewards = []
    for _ in range(300):
        n = rng.randint(0, 9)
        row = {"reward_spec": {"ground_truth": str(n)}, "max_turns": rng.randint(1, 3)}
        ours, theirs = SearchcodeEnv(row, tools), skyrl_gym.make("searchcode", extras=row)
        while True:
            action = turn(rng, n)
            mine, other = ours.step(action), theirs.step(action)
            assert (mine["reward"], mine["done"]) == (other["reward"], other["done"]), action
            if mine["done"]:
                assert mine["observations"] == other["observations"] == []
                break
            (ours_said,) = [message["content"] for message in mine["observations"]]
            theirs_said = [message["content"] for message in other["observations"]]
            if mine["metadata"]["tool"] is None:
                assert len(theirs_said) == 1  # both say what is missing, in their own words
            elif ours_said == "The program wrote nothing.":
                assert theirs_said == []
            else:
                assert theirs_said == [ours_said.replace("/program/main.py", "<string>")] or (
                    "Traceback" in ours_said or "SyntaxError" in ours_said
                )
        rewards.append(mine["reward"])
    assert sum(rewards) > 100, sum(rewards)
    assert rewards.count(0.0) > 50
