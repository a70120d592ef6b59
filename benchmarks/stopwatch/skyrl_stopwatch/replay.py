"""What the agent loop, the envs and the trajectory file cost: a step's trajectories, once more.

Their own code runs for microseconds at a time between the kernel's; a clock around
each piece would cost more than the piece. So the trajectories of a step are played
again from what is recorded of them, with nothing of the kernel between: that is the
agent's and the envs' share of the step. Caches are warm here, so it is rather too
small, and what is left for the kernel rather too large.
"""

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import skyrl_multiply.plugin
from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.env import EnvStep
from skyrl_kernel.protocols import RolloutContext, Settings
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    Group,
    Message,
    Sampling,
    Trajectory,
)
from skyrl_kernel.run.trajectory_file import write_trajectories

REPEATS = 5


def measure(
    trajectories: Sequence[Trajectory], settings: Settings, folder: Path
) -> dict[str, float]:
    """CPU seconds of one step's ``agent_s``, ``envs_s`` and ``files_s``."""
    groups = _groups(trajectories)
    return {
        "agent_s": _seconds(lambda: _each(_play, trajectories)),
        "envs_s": _seconds(lambda: _each(lambda one: _judge(one, settings), trajectories)),
        "files_s": _seconds(lambda: write_trajectories(folder / "replay.parquet", groups)),
    }


def _each(function: Callable[[Trajectory], None], trajectories: Sequence[Trajectory]) -> None:
    for one in trajectories:
        function(one)


def _seconds(function: Callable[[], Any]) -> float:
    """The least of several: what disturbs is not the plugin's."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        function()
        seconds.append(time.process_time() - began)
    return min(seconds)


def _play(trajectory: Trajectory) -> None:
    """The agent loop alone, in the demo's one turn: nothing that it awaits has to be waited for."""
    recorded = _Recorded(trajectory)
    context = RolloutContext(
        phase="train",
        sample=trajectory.sample,
        seed=0,
        sampling=Sampling(),
        engine=recorded,
        tokenizer=recorded,  # type: ignore[arg-type]
        host_env=lambda prompt: recorded,
        max_prompt_tokens=10**6,
        max_input_tokens=10**6,
        max_turns=1,
    )
    _drive(Agent()(trajectory.prompt, context))


def _drive(coroutine: Coroutine[Any, Any, Trajectory]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a recorded trajectory waits for nothing")


class _Recorded:
    """Engine, tokenizer and env of one episode, with the answers they gave."""

    def __init__(self, trajectory: Trajectory) -> None:
        (turn,), (segment,) = trajectory.turns, trajectory.segments
        assert segment.logprobs is not None
        assert segment.versions is not None
        sampled = slice(turn.start, turn.stop)
        self._prompt = segment.tokens[: turn.start]
        self._messages = trajectory.prompt.messages
        self._action = turn.action
        self._metrics = trajectory.env_metrics
        self._step = EnvStep(observations=[], reward=turn.reward, done=True, metadata=turn.metadata)
        self._completion = Completion(
            tokens=segment.tokens[sampled],
            logprobs=segment.logprobs[sampled],
            versions=segment.versions[sampled],
            finish_reason="stop",
        )

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> np.ndarray:
        return self._prompt

    def decode(self, tokens: np.ndarray) -> str:
        return self._action

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        return [self._completion]

    async def init(self) -> Sequence[Message]:
        return self._messages

    async def step(self, action: str) -> EnvStep:
        return self._step

    async def finish(self) -> Mapping[str, float]:
        return self._metrics

    async def discard(self) -> None:
        pass


def _judge(trajectory: Trajectory, settings: Settings) -> None:
    """The env alone."""
    prompt = trajectory.prompt
    env = skyrl_multiply.plugin.make_env(skyrl_multiply.plugin.NAME, settings, prompt.extras, 1)
    assert env is not None, "the demo's env is multiply"
    env.init(prompt.messages)
    for turn in trajectory.turns:
        env.step(turn.action)
    env.get_metrics()
    env.close()


def _groups(trajectories: Sequence[Trajectory]) -> list[Group]:
    members: dict[str, list[Trajectory]] = {}
    for one in trajectories:
        members.setdefault(one.prompt.uid, []).append(one)
    return [
        Group(index=index, prompt=group[0].prompt, trajectories=tuple(group))
        for index, group in enumerate(members.values())
    ]
