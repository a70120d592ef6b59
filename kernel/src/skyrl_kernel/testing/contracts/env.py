"""What an env must keep."""

import asyncio
import copy
import inspect
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from skyrl_kernel.env import Env, EnvStep
from skyrl_kernel.records import Message
from skyrl_kernel.rollout.env_checks import check_metrics, check_prompt, check_step

STRANGE_ACTIONS = (
    "",
    " \n\t",
    "\x00",
    "日本語 🎲",
    "\ud800",  # a lone surrogate, as a cut-off byte sequence decodes to
    "{}[]()\\%s%d{0}",
    "x" * 10_000,
)
"""Completions that models do produce."""


class EnvContract:
    """Subclass and override `make`; also `prompt` and `actions` where the defaults say little."""

    prompt: Sequence[Message] = ({"role": "user", "content": "What is it?"},)
    """The conversation that the env begins with."""
    actions: Sequence[str] = ("I do not know.",)
    """Completions that take different ways through the env: wrong, right, malformed."""
    max_turns = 100
    """No episode is longer."""

    def make(self, cap: int | None = None) -> Env:
        """A fresh env of one and the same row, with ``generator.max_turns=cap``."""
        raise NotImplementedError("override make()")

    def test_it_keeps_the_protocol(self) -> None:
        """`init`, `step`, `close` and `get_metrics` are there."""
        assert isinstance(self.make(), Env)

    def test_init_returns_chat_messages_and_leaves_its_argument_alone(self) -> None:
        """The kernel hands the same row to every trajectory of a group."""
        prompt = [dict(message) for message in self.prompt]
        before = copy.deepcopy(prompt)
        check_prompt(_call(self.make().init, prompt))
        assert prompt == before

    def test_every_episode_ends_with_checked_steps_and_metrics(self) -> None:
        """Whatever the model says, and however long it goes on."""
        for action in (*self.actions, *STRANGE_ACTIONS):
            steps = self._play(self.make(), action)
            assert steps[-1]["done"]
            assert all(math.isfinite(step["reward"]) for step in steps)

    def test_metadata_survives_json(self) -> None:
        """It is written into ``trajectories/``."""
        for action in self.actions:
            for step in self._play(self.make(), action):
                metadata = step["metadata"]
                assert json.loads(json.dumps(metadata)) == metadata

    def test_an_unfinished_step_says_something(self) -> None:
        """Without an observation the model would be asked to go on after its own words."""
        for action in self.actions:
            for step in self._play(self.make(), action):
                assert step["done"] or step["observations"]

    def test_equal_actions_give_equal_rewards(self) -> None:
        """Each env is a fresh one: nothing of one episode reaches another."""
        for action in self.actions:
            first, second = self._play(self.make(), action), self._play(self.make(), action)
            assert [step["reward"] for step in first] == [step["reward"] for step in second]

    def test_a_cap_shortens_and_never_lengthens(self) -> None:
        """``generator.max_turns`` is a cap on the env's own limit."""
        for action in self.actions:
            own = len(self._play(self.make(), action))
            assert len(self._play(self.make(cap=1), action)) == 1
            assert len(self._play(self.make(cap=self.max_turns), action)) == own

    def test_it_can_be_closed_before_it_was_used(self) -> None:
        """As happens when the engine fails."""
        env = self.make()
        _call(env.init, list(self.prompt))
        _call(env.close)

    def _play(self, env: Env, action: str) -> list[EnvStep]:
        _call(env.init, [dict(message) for message in self.prompt])
        steps: list[EnvStep] = []
        while not steps or not steps[-1]["done"]:
            if len(steps) == self.max_turns:
                pytest.fail(f"not done after {self.max_turns} turns of {action[:40]!r}")
            steps.append(check_step(_call(env.step, action)))
        check_metrics(_call(env.get_metrics))
        _call(env.close)
        return steps


def _call(method: Any, *args: Any) -> Any:
    result = method(*args)
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())
