"""REINFORCE++ with baseline: an answer against its group, then against the whole batch.

Hu et al. 2025, arXiv:2501.03262, the variant "w/ Baseline". Elsewhere it is
called ``reinforce_baseline`` and ``reinforce_plus_plus_baseline``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import Scored, TokenAdvantages
from skyrl_reinforce.whiten import whitened


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=reinforce++_baseline``."""
    return Advantage(fn=credit) if name == "reinforce++_baseline" else None


def centred(rewards: Sequence[float]) -> NDArray[np.float64]:
    """``r - mean(r)`` of one group; a group of one is compared with 0.

    Args:
        rewards: [G] finite total reward of each trajectory of one prompt.

    Example:
        >>> centred([1.0, 0.0, 0.0, 1.0]).tolist()
        [0.5, -0.5, -0.5, 0.5]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) < 2:
        return values
    if values.min() == values.max():  # the mean's rounding must not become a signal
        return np.zeros_like(values)
    result: NDArray[np.float64] = values - values.mean()
    return result


def credit(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Each trajectory's centred reward on all its trained tokens, normalised over the batch's."""
    values = [centred([one.total_reward for one in group]) for group in groups]
    spread = [
        np.full(sum([int(segment.loss_mask.sum()) for segment in one.trajectory.segments]), value)
        for group, own in zip(groups, values, strict=True)
        for one, value in zip(group, own, strict=True)
    ]
    advantages = iter(whitened(spread))
    credits = [[next(advantages) for _ in group] for group in groups]
    return [
        [
            one.credited(float(row[0]) if row.size else 0.0)
            for one, row in zip(group, rows, strict=True)
        ]
        for group, rows in zip(groups, credits, strict=True)
    ]
