"""The numbers of a step, under SkyRL's names and by SkyRL's definitions.

Where SkyRL's definition misleads, another name stands beside it:
docs/reference/metrics.md describes every metric.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.batch import CreditedGroup
from skyrl_kernel.env import mean_metrics
from skyrl_kernel.producer import Batch
from skyrl_kernel.records import Group, Trajectory, UpdateResult


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """``reward/…``: what the trajectories of a batch earned; nothing where nothing was sampled."""
    groups = [group for group in groups if any(one.turns for one in group.trajectories)]
    totals = [[_total(one) for one in group.trajectories] for group in groups if group.trajectories]
    flat = [total for group in totals for total in group]
    if not flat:
        return {}
    size = max(len(group.trajectories) + len(group.failures) for group in groups)
    return {
        "reward/avg_raw_reward": float(np.mean(flat)),
        f"reward/avg_pass_at_{size}": float(
            np.mean([_any_last_positive(g) for g in groups if g.trajectories])
        ),
        "reward/mean_positive_reward": float(
            np.mean([_positive(one) for group in groups for one in group.trajectories])
        ),
        "reward/zero_variance_groups_frac": float(
            np.mean([max(group) == min(group) for group in totals])
        ),
    }


def generation_metrics(
    trajectories: Sequence[Trajectory], prefix: str = "generate"
) -> dict[str, float]:
    """``generate/…`` and ``environment/…``: lengths, turns, endings, the envs' own numbers."""
    trajectories = [one for one in trajectories if one.turns]
    if not trajectories:
        return {}
    lengths = np.array([one.num_completion_tokens for one in trajectories], dtype=np.float64)
    rewarded = np.array([_total(one) != 0 for one in trajectories])
    turns = [turn.stop - turn.start for one in trajectories for turn in one.turns]
    out = {
        f"{prefix}/min_num_tokens": float(lengths.min()),
        f"{prefix}/max_num_tokens": float(lengths.max()),
        f"{prefix}/avg_num_tokens": float(lengths.mean()),
        f"{prefix}/std_num_tokens": float(lengths.std()),
        f"{prefix}/avg_tokens_non_zero_rewards": float(lengths[rewarded].mean())
        if rewarded.any()
        else 0.0,
        f"{prefix}/avg_tokens_zero_rewards": float(lengths[~rewarded].mean())
        if (~rewarded).any()
        else 0.0,
        f"{prefix}/tokens_per_turn_mean": float(np.mean(turns)),
        f"{prefix}/turns_mean": float(np.mean([len(one.turns) for one in trajectories])),
    }
    endings = collections.Counter([one.stop_reason for one in trajectories])
    for reason, count in sorted(endings.items()):
        out[f"{prefix}/stop_{reason}_frac"] = count / len(trajectories)
    if prefix == "generate":
        metrics = mean_metrics([one.env_metrics for one in trajectories if one.env_metrics])
        out.update({f"environment/{name}": value for name, value in metrics.items()})
    return out


def failure_metrics(batch: Batch) -> dict[str, float]:
    """``failures/…``: lost trajectories by kind, and groups that were not trained on."""
    out = {"failures/trajectories": float(len(batch.failures))}
    for kind, count in sorted(collections.Counter(str(f.kind) for f in batch.failures).items()):
        out[f"failures/{kind}"] = float(count)
    out["generate/groups_dropped"] = float(len(batch.dropped))
    out["generate/groups_masked"] = float(len(batch.masked))
    return out


def advantage_metrics(groups: Sequence[CreditedGroup]) -> dict[str, float]:
    """``loss/…``: what the batch's trained tokens were credited with."""
    entries = [entry for group in groups for _, tokens in group for entry in tokens]
    flat = np.zeros(0)
    if entries:
        masks = np.concatenate([entry.loss_mask for entry in entries])
        flat = np.concatenate([entry.advantages for entry in entries])[masks]
    totals = [_total(one.trajectory) for group in groups for one, _ in group]
    return {
        "loss/avg_final_rewards": float(np.mean(totals)) if totals else 0.0,
        "loss/avg_raw_advantages": float(flat.mean()) if flat.size else 0.0,
        "loss/avg_raw_advantages_abs": float(np.abs(flat).mean()) if flat.size else 0.0,
        "loss/trained_tokens": float(flat.size),
    }


def update_metrics(results: Sequence[UpdateResult]) -> dict[str, float]:
    """``policy/…``: the updates of one step, averaged; extremes stay extremes."""
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
    return {f"policy/{name}": value for name, value in reduced.items()}


def timing_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """``timing/…``: seconds by stage."""
    return {f"timing/{name}": value for name, value in seconds.items()}


def staleness_metrics(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    """``async/…``: versions between the weights that sampled and those that are trained."""
    sampled = [one.version for one in trajectories]
    lags = [version - oldest for oldest in sampled if oldest is not None]
    if not lags:
        return {}
    return {
        "async/staleness_mean": float(np.mean(lags)),
        "async/staleness_max": float(max(lags)),
        "async/staleness_min": float(min(lags)),
    }


def _total(trajectory: Trajectory) -> float:
    return trajectory.reward.total if trajectory.reward is not None else 0.0


def _positive(trajectory: Trajectory) -> float:
    turns = trajectory.reward.turns if trajectory.reward is not None else ()
    return float(sum([turn for turn in turns if turn > 0]))


def _any_last_positive(group: Group) -> bool:
    """SkyRL's pass@n: some trajectory's last turn earned more than 0."""
    return any(
        one.reward is not None and one.reward.turns and one.reward.turns[-1] > 0
        for one in group.trajectories
    )
