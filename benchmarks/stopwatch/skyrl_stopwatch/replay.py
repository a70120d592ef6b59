"""What the agent loop and the envs cost: a step's trajectories, once more.

Their own code runs for microseconds at a time between the kernel's; a clock around
each piece would cost more than the piece. So the trajectories of a step are played
again from what is recorded of them, with nothing of the kernel between: that is the
agent's and the envs' share of the step. In a step, all of them wait together for
the engine, and what comes before and after follows seconds of computing, which
leaves nothing of theirs in the processor's caches; so here each half follows a
sweep through more memory than the caches hold.
"""

import statistics
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

import skyrl_multiply.plugin
from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.env import EnvStep
from skyrl_kernel.protocols import RolloutContext, Settings
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    Message,
    Sampling,
    Trajectory,
)

REPEATS = 9
_SWEEP = np.zeros(2**24)
"""128 MiB."""


def measure(trajectories: Sequence[Trajectory], settings: Settings) -> dict[str, float]:
    """CPU seconds of one step's ``agent_s`` and ``envs_s``."""
    return {
        "agent_s": _seconds(lambda: [_Episode(one) for one in trajectories]),
        "envs_s": _seconds(lambda: [_Judgement(one, settings) for one in trajectories]),
    }


class _Halves(Protocol):
    def begin(self) -> None:
        """Up to the engine's answer."""

    def end(self) -> None:
        """From there on."""


def _seconds(make: Callable[[], Sequence[_Halves]]) -> float:
    """The median of several."""
    seconds = []
    for _ in range(REPEATS):
        made = make()
        spent = 0.0
        for half in ("begin", "end"):
            methods = [getattr(one, half) for one in made]
            np.add(_SWEEP, 1.0, out=_SWEEP)
            began = time.thread_time()
            for method in methods:
                method()
            spent += time.thread_time() - began
        seconds.append(spent)
    return statistics.median(seconds)


class _Episode:
    """The agent loop alone, in the demo's one turn."""

    def __init__(self, trajectory: Trajectory) -> None:
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
        self._coroutine: Coroutine[Any, Any, Trajectory] = Agent()(trajectory.prompt, context)

    def begin(self) -> None:
        self._coroutine.send(None)

    def end(self) -> None:
        try:
            self._coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a recorded trajectory waits for the engine only")


@types.coroutine
def _wait() -> Generator[None, None, None]:
    yield


class _Recorded:
    """Engine, tokenizer and env of one episode, with the answers they gave."""

    def __init__(self, trajectory: Trajectory) -> None:
        (turn,), (segment,) = trajectory.turns, trajectory.segments
        assert segment.logprobs is not None
        assert segment.versions is not None
        sampled = slice(turn.start, turn.stop)
        self.eos_token_ids = frozenset(segment.tokens[sampled][-1:].tolist())
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
        await _wait()
        return [self._completion]

    async def init(self) -> Sequence[Message]:
        return self._messages

    async def step(self, action: str) -> EnvStep:
        return self._step

    async def finish(self) -> Mapping[str, float]:
        return self._metrics

    async def discard(self) -> None:
        pass


class _Judgement:
    """The env alone."""

    def __init__(self, trajectory: Trajectory, settings: Settings) -> None:
        self._trajectory = trajectory
        self._settings = settings

    def begin(self) -> None:
        prompt = self._trajectory.prompt
        name = skyrl_multiply.plugin.NAME
        self._env = skyrl_multiply.plugin.make_env(name, self._settings, prompt.extras, 1)
        assert self._env is not None, "the demo's env is multiply"
        self._env.init(prompt.messages)

    def end(self) -> None:
        assert self._env is not None
        for turn in self._trajectory.turns:
            self._env.step(turn.action)
        self._env.get_metrics()
        self._env.close()
