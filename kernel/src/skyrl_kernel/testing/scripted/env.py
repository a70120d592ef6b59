"""An env that does what its row says, wrong things included."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from skyrl_kernel.env import EnvStep, TextEnv
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import Message

HANG_S = 3600.0


def _raise() -> NoReturn:
    raise RuntimeError("the row asked for it")


def _raise_timeout() -> NoReturn:
    raise TimeoutError("a service of the env did not answer")


def _service_is_down() -> NoReturn:
    raise TrajectoryError(FailureKind.INFRASTRUCTURE, "a service of the env is down")


def _stop_iteration() -> NoReturn:
    raise StopIteration


FAULTS: Mapping[str, Callable[[], Any]] = {
    "raise": _raise,
    "timeout": _raise_timeout,
    "service": _service_is_down,
    "stop_iteration": _stop_iteration,
    "sys_exit": lambda: sys.exit("the env gave up"),
    "die": lambda: os._exit(7),
    "hang": lambda: time.sleep(HANG_S),
    "none": lambda: None,
    "unpicklable": lambda: lambda: None,
    "nan": lambda: _step(reward=float("nan")),
    "infinite": lambda: _step(reward=float("inf")),
    "bool": lambda: _step(reward=True),
    "text": lambda: _step(reward="1.0"),
    "no_reward": lambda: {"observations": [], "done": True},
    "done_text": lambda: _step(done="yes"),
    "bad_observations": lambda: _step(done=False, observations=["hello"]),
    "nan_metric": lambda: {"good": 1.0, "bad": float("nan")},
}
"""What a row may ask for instead of a method's work."""


class ScriptedEnv(TextEnv):
    """One episode by its row's columns, all of which may be missing or null.

    ============== ===========================================================
    ``rewards``    a reward for each turn; the episode has as many turns
    ``answer``     without ``rewards``: a reply that holds it earns
                   ``right_reward`` and ends the episode
    ``right_reward`` as it says; default 1
    ``max_turns``  turns of an episode without ``rewards``; default 1
    ``replies``    the env's reply after each turn; default ``again``
    ``postprocess`` text that replaces each action
    ``fault``      ``METHOD WHAT``, such as ``step raise``; see `FAULTS`
    ``isolate``    true: in a process of its own
    ``is_async``   true: the methods are coroutines (`AsyncScriptedEnv`)
    ============== ===========================================================

    Example:
        >>> env = ScriptedEnv({"answer": "7"})
        >>> env.step("it is 7")["reward"], env.get_metrics()
        (1.0, {'exact_match': 1.0, 'turns': 1.0})
    """

    closed = 0
    """Calls of `close`, over all instances of this process."""

    def __init__(self, extras: Mapping[str, Any], cap: int | None = None) -> None:
        rewards = extras.get("rewards")
        limits = {"max_turns": len(rewards)} if rewards else extras
        super().__init__(limits, max_turns=1, cap=cap)
        self.isolate = bool(extras.get("isolate"))
        self._extras = extras
        self._rewards: Sequence[float] | None = rewards or None
        fault: str = extras.get("fault") or ""
        self._method, _, self._what = fault.partition(" ")
        self._right = False
        if self._goes_wrong("__init__"):
            self._wrong()

    def init(self, prompt: Sequence[Message]) -> Any:
        """The row's prompt."""
        return self._wrong() if self._goes_wrong("init") else (prompt, {})

    def step(self, action: str) -> Any:
        """The row's next reward."""
        self.turns += 1
        if self._goes_wrong("step"):
            return self._wrong()
        self._right = self._extras.get("answer") is not None and self._extras["answer"] in action
        right_reward = self._extras.get("right_reward")
        if self._rewards is not None:
            reward = self._rewards[self.turns - 1]
        else:
            reward = (1.0 if right_reward is None else right_reward) if self._right else 0.0
        done = self.turns >= self.max_turns or (self._rewards is None and self._right)
        replies = self._extras.get("replies") or []
        text = replies[self.turns - 1] if len(replies) >= self.turns else "again"
        step = _step(
            reward=reward,
            done=done,
            observations=[] if done else [{"role": "user", "content": text}],
            metadata={"turn": self.turns, "pid": os.getpid()},
        )
        if self._extras.get("postprocess") is not None:
            step["postprocessed_action"] = self._extras["postprocess"]
        return step

    def get_metrics(self) -> Any:
        """``exact_match`` and ``turns``."""
        if self._goes_wrong("get_metrics"):
            return self._wrong()
        return {"exact_match": float(self._right), "turns": float(self.turns)}

    def close(self) -> None:
        """Count the call."""
        ScriptedEnv.closed += 1
        if self._goes_wrong("close"):
            self._wrong()

    def _goes_wrong(self, method: str) -> bool:
        return method == self._method

    def _wrong(self) -> Any:
        return FAULTS[self._what]()


class AsyncScriptedEnv(ScriptedEnv):
    """The same with coroutines; a hang is one that gives way."""

    async def init(self, prompt: Sequence[Message]) -> Any:  # type: ignore[override]
        """See `ScriptedEnv.init`."""
        await self._wait("init")
        return super().init(prompt)

    async def step(self, action: str) -> Any:
        """See `ScriptedEnv.step`."""
        await self._wait("step")
        return super().step(action)

    async def get_metrics(self) -> Any:  # type: ignore[override]
        """See `ScriptedEnv.get_metrics`."""
        await self._wait("get_metrics")
        return super().get_metrics()

    async def close(self) -> None:  # type: ignore[override]
        """See `ScriptedEnv.close`."""
        await self._wait("close")
        super().close()

    async def _wait(self, method: str) -> None:
        hangs = self._goes_wrong(method) and self._what == "hang"
        await asyncio.sleep(HANG_S if hangs else 0)


def _step(
    *,
    reward: Any = 0.0,
    done: Any = True,
    observations: Any = (),
    metadata: Mapping[str, Any] | None = None,
) -> EnvStep:
    return EnvStep(
        observations=list(observations), reward=reward, done=done, metadata=metadata or {}
    )
