"""GRPO's advantage: how much better than its group a trajectory did.

Shao et al. 2024, arXiv:2402.03300, §4.1.2 (outcome supervision).
"""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Settings
from skyrl_kernel.records import Scored, TokenAdvantages

EPSILON = 1e-6
"""Added to the standard deviation, as in SkyRL."""


@hookimpl
def advantage(name: str, settings: Settings) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=grpo``."""
    if name != "grpo":
        return None
    normalize_std = settings[AlgorithmConfig].grpo_norm_by_std
    return Advantage(fn=lambda groups: [credit_group(group, normalize_std) for group in groups])


def group_advantages(rewards: Sequence[float], *, normalize_std: bool = True) -> list[float]:
    """``(r - mean(r)) / (std(r) + ε)``: each reward against those of its group.

    Args:
        rewards: [G] finite total reward of each trajectory of one prompt.
        normalize_std: Divide by the sample standard deviation (n - 1). False is
            Dr. GRPO, Liu et al. 2025, arXiv:2503.20783.

    Returns:
        [G] float, mean 0 unless G is 1; in standard deviations of reward (reward
        units if ``normalize_std`` is False). All zeros if all rewards are equal.
        A group of one gives its reward, divided by 1 + `EPSILON` if normalised.

    Example:
        >>> group_advantages([1.0, 0.0, 0.0, 1.0], normalize_std=False)
        [0.5, -0.5, -0.5, 0.5]
        >>> [round(a, 6) for a in group_advantages([1.0, 0.0, 0.0, 1.0])]  # std = sqrt(1/3)
        [0.866024, -0.866024, -0.866024, 0.866024]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) == 1:
        mean, std = 0.0, 1.0
    elif values.min() == values.max():
        return [0.0] * len(values)  # the mean's rounding must not become a signal
    else:
        mean, std = values.mean(), values.std(ddof=1)
    centred = values - mean
    advantages: list[float] = (centred / (std + EPSILON) if normalize_std else centred).tolist()
    return advantages


def credit_group(group: Sequence[Scored], normalize_std: bool) -> list[tuple[TokenAdvantages, ...]]:
    """Give every trained token of a trajectory the trajectory's advantage."""
    if not group:
        return []
    rewards = [one.total_reward for one in group]
    advantages = group_advantages(rewards, normalize_std=normalize_std)
    return [one.credited(credit) for one, credit in zip(group, advantages, strict=True)]
