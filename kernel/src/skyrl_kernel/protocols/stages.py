"""What the stages of the loop are: what each is called with, and what it returns."""

from collections.abc import (
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from skyrl_kernel.env import EnvStep
from skyrl_kernel.protocols.engine import Engine, Generates
from skyrl_kernel.protocols.given import Tokenizer
from skyrl_kernel.protocols.trainer import Trainer
from skyrl_kernel.quick import quick
from skyrl_kernel.records import (
    BoolArray,
    FloatArray,
    Group,
    Message,
    Phase,
    Prompt,
    Reward,
    Sampling,
    Scored,
    Selection,
    TokenAdvantages,
    Trajectory,
)

if TYPE_CHECKING:
    import torch

    from skyrl_kernel.torch import LossInputs, LossTerms, ValueInputs


class HostedEnv(Protocol):
    """An env as a `generate` stage sees it: async, under deadlines, its results checked.

    Every method but `discard` raises `TrajectoryError`, typed by what failed.
    """

    async def init(self) -> Sequence[Message]:
        """Make the env; returns the conversation to start from."""
        ...

    async def step(self, action: str) -> EnvStep:
        """Judge one completion."""
        ...

    async def finish(self) -> Mapping[str, float]:
        """Close the env; returns the episode's metrics."""
        ...

    async def discard(self) -> None:
        """Close the env after a failure, or do nothing if it is closed. Never raises."""
        ...


@quick
@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutContext:
    """Everything one rollout may use."""

    phase: Phase
    sample: int
    """Which of the prompt's trajectories this is, from 0."""
    seed: int
    """Seed of this trajectory alone."""
    sampling: Sampling
    engine: Generates
    tokenizer: Tokenizer
    host_env: Callable[[Prompt], HostedEnv]
    """A fresh env for the prompt, under deadlines and with typed errors."""
    max_prompt_tokens: int
    """The longest first prompt."""
    max_input_tokens: int
    """The longest row that may be continued."""
    max_turns: int | None
    """``generator.max_turns``: ends an episode that its env has not ended."""


class Generate(Protocol):
    """Stage 1: play one episode."""

    async def __call__(self, prompt: Prompt, context: RolloutContext) -> Trajectory:
        """Play it; raise to lose this trajectory."""
        ...


MeasureRow = Callable[[Prompt, Tokenizer], int]
"""How many tokens a row has before the first trained one; `ValueError` says what a row lacks. A row
without the column ``prompt`` comes as a `Prompt` without messages."""


RewardFn = Callable[[Sequence[Trajectory]], Sequence[Reward]]
"""Stage 2: judge the trajectories of one group; one reward each, in order."""


Select = Callable[[Sequence[Group], int, np.random.Generator], Selection]
"""Stage 3: (candidates, target, rng) → a verdict for each candidate. If fewer than
``target`` groups stay in, the loop generates more and asks again."""


SyncWeights = Callable[[Trainer, Engine, int], Awaitable[None]]
"""Stage 6: (trainer, engine, version) → the engine holds the policy's weights."""


ScoreName = Literal["old_logprobs", "ref_logprobs", "teacher_logprobs", "values"]


CreditedGroup = list[tuple[Scored, tuple[TokenAdvantages, ...]]]
"""The trajectories of one group, each with its scores and its segments' advantages."""


class Stateful(Protocol):
    """What a run must remember to go on as if it had not been interrupted.

    Where generation runs ahead, the stages `generate` and `reward` have seen groups by a checkpoint
    that the run generates once more after it: their state should not count groups.
    """

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken."""
        ...


def _nothing_to_tell(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantage:
    """Stage 4: what each token is credited with. Groups in, one entry per segment out.

    ``fn`` takes [P] groups of [G] scored trajectories and returns, for each
    trajectory, its segments' `TokenAdvantages`.
    """

    fn: Callable[[Sequence[Sequence[Scored]]], list[list[tuple[TokenAdvantages, ...]]]]
    needs: frozenset[ScoreName] = frozenset()
    """Scores that must be there; the kernel computes no others."""
    needs_one_row: bool = False
    """True refuses trajectories of several token rows: credit flows from token to token along one."""
    measure: Callable[[Sequence[CreditedGroup]], Mapping[str, float]] = _nothing_to_tell
    """Metrics of a step, by full name (``loss/mine``) and none that the kernel measures itself, from
    what was credited; a wrapper adds its own."""
    state: Mapping[str, Stateful] = field(default_factory=dict)
    """What it remembers from step to step, by name: goes into checkpoints as JSON."""

    def __call__(
        self, groups: Sequence[Sequence[Scored]]
    ) -> list[list[tuple[TokenAdvantages, ...]]]:
        """Apply ``fn``."""
        return self.fn(groups)

    def state_dict(self) -> dict[str, Any]:
        """Of everything in ``state``."""
        return {name: one.state_dict() for name, one in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring everything in ``state`` back; what the checkpoint does not know begins anew."""
        for name, saved in state.items():
            if name in self.state:
                self.state[name].load_state_dict(saved)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Stage 5: per-token terms; the objective is Σ coefficient × loss weight × term.

    ``fn`` and ``critic`` are pure: packed tensors in, `skyrl_kernel.torch.LossTerms` out.
    """

    fn: Callable[["LossInputs"], "LossTerms"]
    """Of the policy."""
    needs: frozenset[ScoreName] = frozenset()
    """Scores that must be there; the kernel computes no others."""
    needs_sampler_logprobs: bool = False
    """True refuses data that was not sampled."""
    atom: Literal["trajectory", "group"] = "trajectory"
    """What micro-batches never split."""
    coefficients: Mapping[str, float] = field(default_factory=lambda: {"policy": 1.0})
    """Factor of each term that ``fn`` and ``critic`` return."""
    prepare: Callable[["LossInputs"], Mapping[str, "torch.Tensor"]] | None = None
    """What ``fn`` must know of every token of the mini-batch beforehand: [N] columns of a
    micro-batch, computed in a pass of its own. ``fn`` finds them in ``inputs.minibatch``, those of
    all micro-batches and ranks joined."""
    critic: Callable[["ValueInputs"], "LossTerms"] | None = None
    """Of the critic, whose one term is ``value``; None trains none. It sees nothing of the policy,
    which may be in other processes."""

    def __call__(self, inputs: "LossInputs") -> "LossTerms":
        """Apply ``fn``."""
        return self.fn(inputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Stage 7: the metrics of judged held-out trajectories, names as in ``eval/``."""

    fn: Callable[[Sequence[Scored]], Mapping[str, float]]
    needs: frozenset[ScoreName] = frozenset()
    """Scores under the weights that are evaluated; the kernel computes no others."""

    def __call__(self, trajectories: Sequence[Scored]) -> Mapping[str, float]:
        """Apply ``fn``."""
        return self.fn(trajectories)


class Reduction(Protocol):
    """Turns the masks of one mini-batch into per-token weights of the policy term."""

    def __call__(
        self, masks: Sequence[BoolArray], trajectories: Sequence[int], groups: Sequence[int]
    ) -> list[FloatArray]:
        """One [T] weight per row; ``trajectories`` and ``groups`` number each row's owners."""
        ...
