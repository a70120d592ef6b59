"""Hooks of the plugin `dpo`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pydantic import BaseModel

from skyrl_dpo.config import DpoConfig
from skyrl_dpo.evaluation import preferences
from skyrl_dpo.loss import make_loss
from skyrl_dpo.pairs import SIDES, measure, pair_rows, prompt_of, sides
from skyrl_kernel.config import GeneratorConfig
from skyrl_kernel.errors import ConfigError, FailureKind, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import (
    Advantage,
    Evaluate,
    Generate,
    Loss,
    MeasureRow,
    RewardFn,
    RolloutContext,
    Settings,
    Tokenizer,
)
from skyrl_kernel.records import Prompt, Reward, StopReason, Trajectory

NAME = "dpo"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.dpo``."""
    return {"trainer.algorithm.dpo": DpoConfig}


@hookimpl
def generate(name: str, settings: Settings) -> Generate | None:
    """The stage of ``generator.rollout=dpo``."""
    if name != NAME:
        return None
    config = settings[GeneratorConfig]
    for key in ("n_samples_per_prompt", "eval_n_samples_per_prompt"):
        if getattr(config, key) != len(SIDES):
            raise ConfigError(
                f"generator.{key}={getattr(config, key)}, but a row of preference data is a pair of "
                f"answers; set generator.{key}=2, as --plugin dpo does"
            )
    return read_side


@hookimpl
def measure_row(name: str) -> MeasureRow | None:
    """Every row is read once before the run, so that a bad one is found then."""
    return prompt_tokens if name == NAME else None


@hookimpl
def reward(name: str) -> RewardFn | None:
    """The stage of ``generator.reward=dpo``."""
    return no_reward if name == NAME else None


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The stage of ``trainer.algorithm.advantage_estimator=dpo``."""
    return Advantage(fn=sides, measure=measure) if name == NAME else None


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=dpo``.

    Raises:
        ConfigError: The rows are no pairs: what an engine samples has no better side.
    """
    if name != NAME:
        return None
    rollout = settings[GeneratorConfig].rollout
    if rollout != NAME:
        raise ConfigError(
            f"trainer.algorithm.policy_loss_type=dpo compares the two answers of a pair, and "
            f"generator.rollout={rollout} makes none; use --plugin dpo, which sets both"
        )
    return make_loss(settings[DpoConfig])


@hookimpl
def evaluate(name: str, settings: Settings) -> Evaluate | None:
    """The stage of ``trainer.evaluator=dpo``."""
    if name != NAME:
        return None
    return Evaluate(
        fn=partial(preferences, config=settings[DpoConfig]),
        needs=frozenset({"old_logprobs", "ref_logprobs"}),
    )


async def read_side(prompt: Prompt, context: RolloutContext) -> Trajectory:
    """One side of a row as a trajectory without turns; sample 0 is the preferred one.

    Raises:
        TrajectoryError: The row holds no pair.
    """
    try:
        segments = pair_rows(prompt, context.tokenizer)[context.sample]
    except ValueError as error:
        raise TrajectoryError(FailureKind.TASK, f"row {prompt.uid}: {error}", NAME) from error
    return Trajectory(
        prompt=replace(prompt, messages=prompt_of(prompt)),
        sample=context.sample,
        segments=segments,
        turns=(),
        stop_reason=StopReason.STOP,
    )


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """Tokens before the first one to learn, of the side that has more of them."""
    return max(rows[0].num_prompt_tokens for rows in pair_rows(prompt, tokenizer))


def no_reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
    """Preferences are not rewards: the loss compares the sides."""
    return [Reward(turns=()) for _ in trajectories]
