"""An env that waits: what asynchronous training can hide."""

import asyncio
from collections.abc import Mapping
from typing import Any

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings

NAME = "waiting"


class WaitingEnv(TextEnv):
    """One turn, judged after the row's ``wait_s`` seconds, which no processor is busy for.

    The reward is the fraction of lower-case letters: some number that differs among completions.
    """

    def __init__(self, extras: Mapping[str, Any]) -> None:
        super().__init__(extras)
        self._wait_s = float(extras["wait_s"])

    async def step(self, action: str) -> EnvStep:
        """Wait, and judge."""
        await asyncio.sleep(self._wait_s)
        reward = sum(map(str.islower, action)) / max(len(action), 1)
        return EnvStep(observations=[], reward=reward, done=True, metadata={})


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> WaitingEnv | None:
    """A fresh env for one row."""
    return WaitingEnv(extras) if name == NAME else None
