"""The numbers of a step, under SkyRL's names and by SkyRL's definitions.

Where SkyRL's definition misleads, another name stands beside it:
docs/reference/metrics.md describes every metric. Those of what was generated are
in `skyrl_kernel.rollout_metrics`, those of log-probs in `skyrl_kernel.score_metrics`.
"""

import collections
import math
from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.credited import Credited
from skyrl_kernel.producer import Batch
from skyrl_kernel.records import (
    EQUAL_REWARDS,
    Group,
    Trajectory,
    UpdateResult,
    oldest_versions,
)
from skyrl_kernel.success import any_success


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """``reward/…``: what the trajectories of a batch earned; nothing where nothing was sampled."""
    groups = [group for group in groups if any(one.turns for one in group.trajectories)]
    if not groups:
        return {}
    turns = [[_turn_rewards(one) for one in group.trajectories] for group in groups]
    totals = [[sum(one) for one in group] for group in turns]
    size = max(len(group.trajectories) + len(group.failures) for group in groups)
    outcomes = [any_success(group.trajectories) for group in groups]
    succeeded = [outcome for outcome in outcomes if outcome is not None]
    passed = [any(one and one[-1] > 0 for one in group) for group in turns]
    positive = [sum([reward for reward in one if reward > 0]) for group in turns for one in group]
    return {
        "reward/avg_raw_reward": _mean([total for group in totals for total in group]),
        **({f"reward/avg_success_at_{size}": _mean(succeeded)} if succeeded else {}),
        f"reward/avg_pass_at_{size}": _mean(passed),  # SkyRL's: some last turn earned more than 0
        "reward/mean_positive_reward": _mean(positive),
        "reward/zero_variance_groups_frac": _mean([max(group) == min(group) for group in totals]),
    }


def failure_metrics(batch: Batch) -> dict[str, float]:
    """``failures/…``: lost trajectories by kind, and groups that were not trained on."""
    out = {"failures/trajectories": float(len(batch.failures))}
    for kind, count in sorted(collections.Counter(str(f.kind) for f in batch.failures).items()):
        out[f"failures/{kind}"] = float(count)
    out["generate/groups_dropped"] = float(len(batch.dropped))
    out["generate/groups_masked"] = float(len(batch.masked))
    return out


def filter_metrics(batch: Batch) -> dict[str, float]:
    """``reward/num_zero_variance_filtered``: trajectories of groups masked or dropped for equal rewards."""
    reasons = [(group, batch.masked.get(group.index)) for group in batch.groups]
    count = sum(
        [
            len(group.trajectories)
            for group, reason in [*reasons, *batch.dropped]
            if reason == EQUAL_REWARDS
        ]
    )
    return {"reward/num_zero_variance_filtered": float(count)}


def advantage_metrics(credited: Credited) -> dict[str, float]:
    """``loss/…``: what the batch's trained tokens were credited with."""
    flat = credited.trained_advantages
    return {
        "loss/avg_final_rewards": _mean(credited.rewards),
        "loss/avg_raw_advantages": float(flat.mean()) if flat.size else 0.0,
        "loss/avg_raw_advantages_abs": float(np.abs(flat).mean()) if flat.size else 0.0,
        "loss/trained_tokens": float(flat.size),
    }


def update_metrics(results: Sequence[UpdateResult]) -> dict[str, float]:
    """``policy/…``, ``critic/…``: the updates of one step, averaged; extremes stay extremes."""
    columns: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.metrics.items():
            columns.setdefault(name, []).append(value)
    reduced = {
        name: max(values)
        if name.endswith("_max")
        else min(values)
        if name.endswith("_min")
        else sum(values) / len(values)
        for name, values in columns.items()
    }
    return {
        name if name.startswith("critic/") else f"policy/{name}": value
        for name, value in reduced.items()
    }


def timing_metrics(seconds: Mapping[str, float], *, ahead: bool) -> dict[str, float]:
    """``timing/…``: seconds by stage; where generation runs ``ahead``, some by a second name too."""
    named = {**seconds, **(_ahead_timing(seconds) if ahead else {})}
    return {f"timing/{name}": value for name, value in named.items()}


def _ahead_timing(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by the names that SkyRL gives some of a step where generation runs ahead.

    Example:
        >>> stages = "generate", "fwd_logprobs_values_reward", "compute_advantages_and_returns"
        >>> _ahead_timing({**dict.fromkeys(stages, 1.0), "train_critic_and_policy": 2.0})
        {'wait_for_generation_buffer': 1.0, 'run_training': 4.0}
    """
    training = (
        "fwd_logprobs_values_reward",
        "compute_advantages_and_returns",
        "train_critic_and_policy",
    )
    return {
        "wait_for_generation_buffer": seconds["generate"],
        "run_training": sum(seconds[name] for name in training),
    }


def is_wall_clock(name: str) -> bool:
    """True for numbers that no two runs share.

    Example:
        >>> names = "timing/step", "generate/trajectory_time_llm_max", "generate/turns_mean"
        >>> [is_wall_clock(name) for name in names]
        [True, True, False]
    """
    return (
        name.startswith(("timing/", "ray/", "vllm/", "async/gen_buffer_"))
        or "_time_" in name
        or "_per_second_" in name
    )


def async_metrics(batch: Batch, version: int, max_staleness: int) -> dict[str, float]:
    """``async/…``: versions between the weights that sampled and those that are trained.

    Args:
        batch: What the step trained on.
        version: Of the weights that were trained.
        max_staleness: What admission allows.
    """
    kept = len({group.index for group in batch.groups})  # one that stands in was generated once
    out = {
        "async/gen_buffer_qsize_at_wait_start": float(batch.ready),
        "async/num_groups_dropped": float(len(batch.dropped)),
        "async/keep_rate": kept / max(kept + len(batch.dropped), 1),
    }
    oldest = oldest_versions([one for group in batch.groups for one in group.trajectories])
    if not oldest:
        return out
    lags = version - np.array(oldest)
    return {
        **out,
        "async/staleness_ratio": float((lags > 0).mean()),
        "async/staleness_violation_count": float((lags > max_staleness).sum()),
        "async/staleness_mean": float(lags.mean()),
        "async/staleness_max": float(lags.max()),
        "async/staleness_min": float(lags.min()),
    }


def _turn_rewards(trajectory: Trajectory) -> tuple[float, ...]:
    return trajectory.reward.turns if trajectory.reward is not None else ()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
