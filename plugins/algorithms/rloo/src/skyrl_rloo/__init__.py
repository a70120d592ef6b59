"""REINFORCE leave-one-out: what an answer earned beyond the mean of the others.

Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Ahmadian
et al. 2024, "Back to Basics", arXiv:2402.14740, eq. 8. Differences from the
papers:

1. The loss is the clipped one of PPO (`skyrl_grpo.clip`). At the first update of
   a batch its gradient is the paper's; later ones stay near the old policy.
2. The loss is averaged over the tokens of a mini-batch, not over its answers
   (``trainer.algorithm.loss_reduction=sequence_mean`` does that).
3. The paper takes KL against the reference from the reward; here that is a
   setting, ``trainer.algorithm.use_kl_in_reward``.
"""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.config import GeneratorConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Settings
from skyrl_kernel.records import Scored, TokenAdvantages


@hookimpl
def advantage(name: str, settings: Settings) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=rloo``.

    Raises:
        ConfigError: There is one answer per prompt, so that nothing would be learnt.
    """
    if name != "rloo":
        return None
    if settings[GeneratorConfig].n_samples_per_prompt == 1:
        raise ConfigError(
            "trainer.algorithm.advantage_estimator=rloo compares the answers of a prompt, and "
            "generator.n_samples_per_prompt=1 asks for one; set it to 2 or more, or use reinforce++"
        )
    return Advantage(fn=lambda groups: [credit_group(group) for group in groups])


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """``r_i - mean of the other r_j``, which is ``(r_i - mean(r)) · n / (n - 1)``.

    Args:
        rewards: [n] finite total reward of each trajectory of one prompt.

    Returns:
        [n] float, mean 0, in reward units. Zero where there is no other.

    Example:
        >>> leave_one_out([6.0, 3.0])
        [3.0, -3.0]
    """
    values = np.asarray(rewards, dtype=np.float64)
    count = len(values)
    if count < 2 or values.min() == values.max():  # the mean's rounding must not become a signal
        return [0.0] * count
    advantages: list[float] = ((values - values.mean()) * count / (count - 1)).tolist()
    return advantages


def credit_group(group: Sequence[Scored]) -> list[tuple[TokenAdvantages, ...]]:
    """Give every trained token of a trajectory the trajectory's advantage."""
    advantages = leave_one_out([one.total_reward for one in group])
    return [one.credited(credit) for one, credit in zip(group, advantages, strict=True)]
