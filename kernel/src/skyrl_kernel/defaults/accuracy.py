"""Held-out metrics: mean reward, success and pass at n, and the envs' own numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.env import mean_metrics
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Evaluate
from skyrl_kernel.records import Scored, Trajectory
from skyrl_kernel.success import any_success


@hookimpl
def evaluate(name: str) -> Evaluate | None:
    """The metrics of `accuracy`."""
    return Evaluate(fn=_judged) if name == "accuracy" else None


def _judged(scored: Sequence[Scored]) -> Mapping[str, float]:
    return accuracy([one.trajectory for one in scored])


def accuracy(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    """``avg_score``, ``success_at_n``, ``pass_at_n``, lengths, and each env metric's mean.

    n is the number of trajectories per prompt. ``success_at_n`` is the fraction of
    prompts of which some trajectory succeeded, of those whose env says
    (`skyrl_kernel.success`); it is left out where none does. ``pass_at_n`` is
    SkyRL's: the fraction of prompts of which some trajectory's last turn earned
    more than 0, so partial credit passes.
    """
    if not trajectories:
        return {}
    turns = [one.reward.turns if one.reward is not None else () for one in trajectories]
    prompts: dict[str, list[int]] = {}
    for place, one in enumerate(trajectories):
        prompts.setdefault(one.prompt.uid, []).append(place)
    size = max(map(len, prompts.values()))
    outcomes = [any_success([trajectories[i] for i in places]) for places in prompts.values()]
    succeeded = [outcome for outcome in outcomes if outcome is not None]
    passed = [any(turns[i] and turns[i][-1] > 0 for i in places) for places in prompts.values()]
    positive = [sum([reward for reward in own if reward > 0]) for own in turns]
    return {
        "avg_score": float(np.mean([sum(own) for own in turns])),
        **({f"success_at_{size}": float(np.mean(succeeded))} if succeeded else {}),
        f"pass_at_{size}": float(np.mean(passed)),
        "mean_positive_reward": float(np.mean(positive)),
        "avg_num_tokens": float(np.mean([one.num_completion_tokens for one in trajectories])),
        "num_trajectories": float(len(trajectories)),
        **mean_metrics([one.env_metrics for one in trajectories if one.env_metrics]),
    }
