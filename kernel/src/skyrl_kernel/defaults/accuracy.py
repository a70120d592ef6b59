"""Held-out metrics: mean reward, pass@n, and the envs' own numbers such as exact match."""

from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.env import mean_metrics
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Evaluate
from skyrl_kernel.records import Trajectory


@hookimpl
def evaluate(name: str) -> Evaluate | None:
    """The metrics of `accuracy`."""
    return accuracy if name == "accuracy" else None


def accuracy(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    """``avg_score``, ``mean_positive_reward``, ``pass_at_n``, lengths, and each env metric's mean.

    ``pass_at_n`` is SkyRL's: the fraction of prompts of which some trajectory's
    last turn earned more than 0, so partial credit passes. n is the number of
    trajectories per prompt.
    """
    if not trajectories:
        return {}
    judged = [(one, one.reward.turns) for one in trajectories if one.reward is not None]
    passed: dict[str, bool] = {}
    counts: dict[str, int] = {}
    for one, turns in judged:
        uid = one.prompt.uid
        passed[uid] = passed.get(uid, False) or bool(turns and turns[-1] > 0)
        counts[uid] = counts.get(uid, 0) + 1
    return {
        "avg_score": float(np.mean([sum(turns) for _, turns in judged])),
        f"pass_at_{max(counts.values())}": float(np.mean(list(passed.values()))),
        "mean_positive_reward": float(
            np.mean([sum(max(turn, 0.0) for turn in turns) for _, turns in judged])
        ),
        "avg_num_tokens": float(np.mean([one.num_completion_tokens for one in trajectories])),
        "num_trajectories": float(len(trajectories)),
        **mean_metrics([one.env_metrics for one in trajectories if one.env_metrics]),
    }
