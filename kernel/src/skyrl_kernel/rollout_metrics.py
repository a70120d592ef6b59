"""The numbers of what was generated: lengths, turns, endings, and where the time went.

Names and definitions are SkyRL's where it has the metric: docs/reference/metrics.md.
"""

import collections
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.env import mean_metrics
from skyrl_kernel.records import Group, Trajectory

_KINDS = ("completion", "llm", "env", "other")


def generation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``generate/…`` and ``environment/…`` of trajectories that were sampled."""
    trajectories = [one for one in trajectories if one.turns]
    if not trajectories:
        return {}
    return {
        **length_metrics(trajectories),
        "policy/response_length": float(max(map(_longest_response, trajectories))),
        **_time_metrics(trajectories),
        **ending_metrics(trajectories),
        **{f"environment/{name}": value for name, value in _env_metrics(trajectories).items()},
    }


def length_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Tokens of responses, of the policy's share of them, and of turns."""
    turns = [[turn.stop - turn.start for turn in one.turns] for one in trajectories]
    responses = _array([_response_tokens(one) for one in trajectories])
    sampled = _array([sum(own) for own in turns])
    per_turn = _array([length for own in turns for length in own])
    rewarded = np.array([one.total_reward != 0 for one in trajectories])
    rows = [segment for one in trajectories for segment in one.segments]
    return {
        **{f"generate/{name}_num_tokens": x for name, x in _spread(responses).items()},
        "generate/avg_tokens_non_zero_rewards": _mean(responses[rewarded]),
        "generate/avg_tokens_zero_rewards": _mean(responses[~rewarded]),
        **{f"generate/{name}_assistant_tokens": x for name, x in _spread(sampled).items()},
        "generate/tokens_per_turn_mean": _mean(per_turn),
        "generate/tokens_per_turn_std": float(per_turn.std()) if per_turn.size else 0.0,
        "generate/tokens_per_turn_max": float(per_turn.max(initial=0)),
        "generate/turns_mean": _mean(_array([len(own) for own in turns])),
        "generate/batch_num_seq": float(len(rows)),
        "generate/batch_padded_seq_len": float(max([len(row.tokens) for row in rows])),
    }


def group_time_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """``generate/…``: until the last trajectory of a group ended, and how far they were apart.

    Trajectories of a group begin together, so one that takes longer is waited for.
    """
    times = [
        [one.timings["total"] for one in group.trajectories if "total" in one.timings]
        for group in groups
    ]
    times = [own for own in times if own]
    if not times:
        return {}
    last = np.array([max(own) for own in times])
    counts = np.array([len(own) for own in times])
    flat, starts = np.concatenate(times), np.cumsum(counts) - counts
    means = np.add.reduceat(flat, starts) / counts
    squares = (flat - means.repeat(counts)) ** 2
    deviations = np.sqrt(np.add.reduceat(squares, starts) / counts)
    return {
        "generate/group_completion_time_mean": float(last.mean()),
        "generate/group_completion_time_p90": float(_p90(last)),
        "generate/group_completion_time_max": float(last.max()),
        "generate/intra_group_completion_time_std_mean": float(deviations.mean()),
        "generate/intra_group_completion_time_cv_mean": float(
            (deviations / np.maximum(means, 1e-12)).mean()
        ),
    }


def merge_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``generate/…``: rows of turns before and after they were joined."""
    return {
        "generate/num_seq_before_merge": float(sum([len(one.turns) for one in trajectories])),
        "generate/num_seq_after_merge": float(sum([len(one.segments) for one in trajectories])),
    }


def _time_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Seconds of a trajectory: all, those that waited for the engine or the env, and the rest."""
    timings = [one.timings for one in trajectories if "total" in one.timings]
    if not timings:
        return {}
    table = np.array([[t["total"], t.get("llm", 0.0), t.get("env", 0.0)] for t in timings])
    other = np.maximum(table[:, :1] - table[:, 1:].sum(1, keepdims=True), 0)
    table = np.concatenate([table, other], axis=1)
    reduced = {
        "mean": table.mean(0),
        "p90": _p90(table),
        "max": table.max(0),
    }
    return {
        f"generate/trajectory_time_{kind}_{how}": float(values[place])
        for place, kind in enumerate(_KINDS)
        for how, values in reduced.items()
    }


def ending_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Fraction of trajectories by how they ended."""
    endings = collections.Counter([one.stop_reason for one in trajectories])
    return {
        f"generate/stop_{reason}_frac": count / len(trajectories)
        for reason, count in sorted(endings.items())
    }


def _env_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    return mean_metrics([one.env_metrics for one in trajectories if one.env_metrics])


def _response_tokens(trajectory: Trajectory) -> int:
    """Tokens behind the prompts of its rows, the env's replies included."""
    return sum([len(one.tokens) - one.num_prompt_tokens for one in trajectory.segments])


def _longest_response(trajectory: Trajectory) -> int:
    return max([len(one.tokens) - one.num_prompt_tokens for one in trajectory.segments])


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "avg": float(values.mean()),
        "std": float(values.std()),
    }


def _p90(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """90th percentile along the first axis, as `numpy.percentile` has it, in a third of its time."""
    ordered = np.sort(values, axis=0)
    place = 0.9 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    percentile: NDArray[np.float64] = ordered[below] + (place - below) * (
        ordered[above] - ordered[below]
    )
    return percentile


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
