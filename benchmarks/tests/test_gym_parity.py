"""skyrl-gym's envs and those of this project, on fewer answers than the benchmark's; and its table."""

import json
import os
import shutil
from pathlib import Path

import gym_parity
import pytest
from gym_answers import ENVS, cases

IN_PROCESS = ("gsm8k", "gsm8k_multi_turn", "aime", "search")
SANDBOXED = {"text2sql": 40, "searchcode": 12, "lcb": 12}
"""Env → episodes that take some seconds."""


def shown(one: gym_parity.Comparison) -> str:
    return "\n".join(one.unexplained)


def test_what_runs_no_code_agrees() -> None:
    with gym_parity.surroundings(port=0) as make:
        for env in IN_PROCESS:
            one = gym_parity.compare(env, make, cases(env, 200, seed=7))
            assert one.is_fine, f"{env}: {one.right} right of {one.episodes}\n{shown(one)}"


@pytest.mark.slow
@pytest.mark.parametrize("env", SANDBOXED)
def test_what_runs_code_agrees(env: str) -> None:
    if not shutil.which("bwrap", path=os.environ["PATH"] + ":/usr/bin:/bin"):
        pytest.skip(f"bubblewrap is not installed: the rewards of {env} were not compared")
    with gym_parity.surroundings(port=0) as make:
        episodes = cases(env, SANDBOXED[env], seed=7)
        unsearched = (one for one in episodes if not any("<search>" in r for r in one.replies))
        one = gym_parity.compare(env, make, unsearched)  # searchcode would search at another port
    assert not one.unexplained, shown(one)
    assert one.right > 0


def test_a_difference_is_found() -> None:
    class Generous:
        def __init__(self, env: object) -> None:
            self.init, self.close = env.init, env.close  # type: ignore[attr-defined]
            self._step = env.step  # type: ignore[attr-defined]

        def step(self, reply: str) -> dict[str, object]:
            return {**self._step(reply), "reward": 1.0}

    with gym_parity.surroundings(port=0) as make:
        one = gym_parity.compare(
            "gsm8k",
            lambda name, row: Generous(make(name, row)) if name == "gsm8k" else make(name, row),
            cases("gsm8k", 30),
        )
    assert len(one.unexplained) == 30 - one.right - sum(one.explained.values())
    assert not one.is_fine


def test_the_page_shows_what_was_measured_of_every_env() -> None:
    results = json.loads(gym_parity.RESULTS.read_text())
    assert list(results) == list(ENVS)
    assert gym_parity.section(results) in gym_parity.PAGE.read_text()
    for env, one in results.items():
        assert one["episodes"] >= 1000, env
        assert 3 * one["right"] >= one["episodes"], env
        assert one["equal"] + sum(one["explained"].values()) == one["episodes"], env


def test_the_same_seed_gives_the_same_episodes() -> None:
    for env in ENVS:
        assert list(cases(env, 20)) == list(cases(env, 20))
        assert list(cases(env, 20)) != list(cases(env, 20, seed=2))


def test_the_page_is_where_the_script_writes() -> None:
    page = Path(gym_parity.PAGE).read_text()
    assert page.count(gym_parity.BEGIN) == page.count(gym_parity.END) == 1
