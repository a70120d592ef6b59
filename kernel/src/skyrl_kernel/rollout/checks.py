"""What a trajectory and a reward must be before anything trains on them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import NOT_SAMPLED, Prompt, Reward, Trajectory


def check_trajectory(trajectory: Any, prompt: Prompt, sample: int) -> None:
    """Refuse what is no trajectory of this prompt, or has log-probs that are not finite.

    Raises:
        TrajectoryError: Names the trajectory and what is wrong.
    """

    def refuse(what: str) -> TrajectoryError:
        return TrajectoryError(
            FailureKind.INFRASTRUCTURE, f"trajectory {prompt.uid}/{sample}: {what}"
        )

    if not isinstance(trajectory, Trajectory):
        raise refuse(f"the generate stage returned a {type(trajectory).__name__}, not a Trajectory")
    if trajectory.prompt.uid != prompt.uid or trajectory.sample != sample:
        raise refuse(f"the generate stage returned trajectory {trajectory.id}")
    if not trajectory.segments:
        raise refuse("it has no segment")
    for segment in trajectory.segments:
        if len(segment.loss_mask) and segment.loss_mask[0]:
            raise refuse("it trains on its first token, which nothing predicts")
        if (
            segment.versions is not None
            and (segment.loss_mask & (segment.versions == NOT_SAMPLED)).any()
        ):
            raise refuse("its loss_mask marks tokens that no policy sampled")
        if segment.logprobs is None:
            continue
        trained = segment.logprobs[segment.loss_mask]
        if not np.isfinite(trained).all():
            raise refuse("the engine reported a log-prob that is not finite")
        if (trained > 1e-3).any():
            raise refuse(
                f"the engine reported a log-prob of {trained.max():g}; it cannot be above 0"
            )


def check_rewards(rewards: Any, played: Sequence[Trajectory]) -> Sequence[Reward]:
    """The rewards, if there is a finite one for each trajectory and each of its turns.

    Raises:
        TrajectoryError: Says what was returned instead.
    """

    def refuse(what: str) -> TrajectoryError:
        return TrajectoryError(FailureKind.TASK, f"the reward stage returned {what}")

    if not isinstance(rewards, (list, tuple)) or len(rewards) != len(played):
        found = (
            f"{len(rewards)} rewards" if isinstance(rewards, (list, tuple)) else repr(rewards)[:80]
        )
        raise refuse(f"{found} for {len(played)} trajectories; it must return one Reward for each")
    for reward, trajectory in zip(rewards, played, strict=True):
        if not isinstance(reward, Reward):
            raise refuse(f"a {type(reward).__name__} for trajectory {trajectory.id}, not a Reward")
        if len(reward.turns) != len(trajectory.turns):
            raise refuse(
                f"{len(reward.turns)} turn rewards for trajectory {trajectory.id}, "
                f"which has {len(trajectory.turns)} turns"
            )
        if not all(math.isfinite(value) for value in (*reward.turns, *reward.components.values())):
            raise refuse(
                f"a reward that is not finite for trajectory {trajectory.id}: {reward.turns}"
            )
    return rewards
