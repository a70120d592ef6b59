"""Maximum likelihood reinforcement learning: maximise log p(success), not p(success).

Tajwar et al. 2026, "Maximum Likelihood Reinforcement Learning",
arXiv:2602.02710. ∇ log p = ∇p / p, so a prompt's gradient is divided by its
estimated success rate. Differences from the paper:

1. Rewards need not be 0 or 1. Where some are negative, the mean of their absolute
   values stands for the mean: a mean below 0 would turn the gradient around, and
   one near 0 would have no bound. (SkyRL divides by the mean whatever it is.)
   For rewards of 0 and more that is the paper's.
2. 1e-6 is added to the divisor, and a group of one keeps its reward, as in SkyRL.
3. The loss is the clipped one of PPO (`skyrl_grpo.clip`), averaged over tokens.
"""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import Scored, TokenAdvantages

EPSILON = 1e-6
"""Added to the mean, as in SkyRL: a group that earned nothing trains on nothing."""


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=maxrl``."""
    if name != "maxrl":
        return None
    return Advantage(fn=lambda groups: [credit_group(group) for group in groups])


def relative_advantages(rewards: Sequence[float]) -> list[float]:
    """``(r - mean(r)) / (mean(|r|) + ε)``: how many mean rewards an answer earned beyond the mean.

    Args:
        rewards: [n] finite total reward of each trajectory of one prompt.

    Returns:
        [n] float without unit, mean 0 unless n is 1, within ±(n + 1). All zeros if all
        rewards are equal. A group of one gives its reward.

    Example:
        >>> [round(a, 4) for a in relative_advantages([1.0, 0.0, 0.0, 0.0])]  # mean ¼
        [3.0, -1.0, -1.0, -1.0]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(values) == 1:
        return [float(values[0])]
    if not len(values) or values.min() == values.max():  # not to make a signal of rounding
        return [0.0] * len(values)
    scale = np.abs(values).mean() + EPSILON
    advantages: list[float] = ((values - values.mean()) / scale).tolist()
    return advantages


def credit_group(group: Sequence[Scored]) -> list[tuple[TokenAdvantages, ...]]:
    """Give every trained token of a trajectory the trajectory's advantage."""
    advantages = relative_advantages([one.total_reward for one in group])
    return [one.credited(credit) for one, credit in zip(group, advantages, strict=True)]
