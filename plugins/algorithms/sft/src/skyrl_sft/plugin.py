"""Hooks of the plugin `sft`: rows are read, nothing is sampled or judged, held-out rows are scored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from pydantic import BaseModel

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import (
    Evaluate,
    Generate,
    MeasureRow,
    RewardFn,
    RolloutContext,
    Settings,
    Tokenizer,
)
from skyrl_kernel.records import Prompt, Reward, Scored, StopReason, Trajectory
from skyrl_sft.config import SftConfig
from skyrl_sft.rows import conversation, cut, token_rows

NAME = "sft"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.sft``."""
    return {"trainer.sft": SftConfig}


@hookimpl
def generate(name: str, settings: Settings) -> Generate | None:
    """The stage of ``generator.rollout=sft``."""
    return Reader(settings[SftConfig]) if name == NAME else None


@hookimpl
def measure_row(name: str, settings: Settings) -> MeasureRow | None:
    """Every row is read once before the run, so that a bad one is found then."""
    if name != NAME:
        return None
    return partial(Reader(settings[SftConfig]).measure, settings[TrainerConfig].max_prompt_length)


@hookimpl
def reward(name: str) -> RewardFn | None:
    """The stage of ``generator.reward=sft``."""
    return no_reward if name == NAME else None


@hookimpl
def evaluate(name: str) -> Evaluate | None:
    """The stage of ``trainer.evaluator=sft``."""
    return Evaluate(fn=held_out_loss, needs=frozenset({"old_logprobs"})) if name == NAME else None


class Reader:
    """Makes a trajectory of each row.

    Args:
        config: ``trainer.sft``.
    """

    def __init__(self, config: SftConfig) -> None:
        self._config = config

    async def __call__(self, prompt: Prompt, context: RolloutContext) -> Trajectory:
        """One row as a trajectory without turns: nothing was sampled.

        Raises:
            TrajectoryError: The row cannot be learned from.
        """
        try:
            segments = cut(token_rows(prompt, self._config, context.tokenizer), self._config)
        except ValueError as error:
            raise TrajectoryError(FailureKind.TASK, f"row {prompt.uid}: {error}", NAME) from error
        return Trajectory(
            prompt=_shown(prompt, self._config),
            sample=context.sample,
            segments=segments,
            turns=(),
            stop_reason=StopReason.STOP,
        )

    def measure(self, longest: int, prompt: Prompt, tokenizer: Tokenizer) -> int:
        """Tokens before the first one to learn.

        Args:
            longest: ``trainer.max_prompt_length``: a row that has more is left out anyway.
            prompt: The row.
            tokenizer: The policy's.

        Raises:
            ValueError: The row cannot be learned from; says what it lacks.
        """
        rows = token_rows(prompt, self._config, tokenizer)
        if rows[0].num_prompt_tokens <= longest:
            cut(rows, self._config)
        return rows[0].num_prompt_tokens


def _shown(prompt: Prompt, config: SftConfig) -> Prompt:
    """With what precedes the last answer as its messages, for those who look at trajectories."""
    if prompt.messages or prompt.extras.get("input_ids") is not None:
        return prompt
    return replace(prompt, messages=conversation(prompt, config)[:-1])


def no_reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
    """Nothing was sampled, so nothing is judged."""
    return [Reward(turns=()) for _ in trajectories]


def held_out_loss(scored: Sequence[Scored]) -> Mapping[str, float]:
    """``loss`` in nats per token that would be learned, its exponential ``perplexity``, and counts.

    The mean is over all such tokens of all rows, as in training.

    Example: rows with log-probs -1, -2 and -3: the loss is 2 nats, whichever row they are in.
    """
    chosen = [
        scores.old_logprobs[segment.loss_mask]
        for one in scored
        for segment, scores in zip(one.trajectory.segments, one.scores, strict=True)
        if scores.old_logprobs is not None
    ]
    flat = np.concatenate(chosen).astype(np.float64) if chosen else np.zeros(0)
    if not flat.size:
        return {}
    loss = -float(flat.mean())
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # beyond, a float64 is infinite
        "num_tokens": float(flat.size),
        "num_trajectories": float(len(scored)),
    }
