"""What a trajectory and a reward must be before anything trains on them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.records import NOT_SAMPLED, Prompt, Reward, Segment, Trajectory


def check_trajectory(trajectory: Any, prompt: Prompt, sample: int) -> None:
    """Refuse what is no trajectory of this prompt; `check_tokens` looks at its numbers.

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


def check_tokens(trajectories: Sequence[Trajectory]) -> list[TrajectoryError | None] | None:
    """Refuse masks that mark what nothing sampled, and log-probs that are not finite or above 0.

    All are looked at together, and one by one only to find a bad one.

    Returns:
        What is wrong with each, or None; None where nothing is wrong with any.
    """
    segments = [segment for one in trajectories for segment in one.segments]
    if _token_problem(segments) is None:
        return None
    problems = [(one, _token_problem(one.segments)) for one in trajectories]
    return [
        None
        if problem is None
        else TrajectoryError(FailureKind.INFRASTRUCTURE, f"trajectory {one.id}: {problem}")
        for one, problem in problems
    ]


def _token_problem(segments: Sequence[Segment]) -> str | None:
    if any(len(segment.loss_mask) and segment.loss_mask[0] for segment in segments):
        return "it trains on its first token, which nothing predicts"
    masks, versions, logprobs = [], [], []
    for segment in segments:
        if segment.versions is not None and segment.logprobs is not None:
            masks.append(segment.loss_mask)
            versions.append(segment.versions)
            logprobs.append(segment.logprobs)
    if not masks:
        return None
    trained = np.concatenate(masks)
    if NOT_SAMPLED in np.concatenate(versions)[trained]:
        return "its loss_mask marks tokens that no policy sampled"
    found = np.concatenate(logprobs)[trained]
    if not found.size:
        return None
    lowest, highest = float(found.min()), float(found.max())  # NaN if one is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "the engine reported a log-prob that is not finite"
    if highest > 1e-3:
        return f"the engine reported a log-prob of {highest:g}; it cannot be above 0"
    return None


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
