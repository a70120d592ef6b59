"""Dual clip: the PPO clip, bounded once more where the advantage is negative.

Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement
Learning", arXiv:1912.09729. The PPO clip leaves a token with a negative
advantage unbounded as its ratio grows: loss -r·A, without limit. Here it stops
at -c·A, and the token's gradient with it.

Differences from the paper: two clip ranges, as in DAPO. From SkyRL: none.
"""

from typing import TYPE_CHECKING

from skyrl_grpo import clipped_loss
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=dual_clip``."""
    if name != "dual_clip":
        return None
    config = settings[AlgorithmConfig]
    low, high, bound = config.eps_clip_low, config.eps_clip_high, config.clip_ratio_c

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.old_logprobs is not None, "declared in needs"
        ratios = ratio(inputs.logprobs, inputs.old_logprobs)
        policy, clipped, bounded = dual_clipped_loss(ratios, inputs.advantages, low, high, bound)
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=clipped.float()),
                "loss_metrics/dual_clip_ratio": TokenMetric(values=bounded.float()),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios.detach()),
                "loss_metrics/ratio_max": TokenMetric(values=ratios.detach(), reduction="max"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}))


def dual_clipped_loss(
    ratios: "Tensor", advantages: "Tensor", eps_low: float, eps_high: float, bound: float
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """``-max(min(r·A, clip(r)·A), c·A)`` where A < 0, the PPO clip elsewhere; per token.

    Args:
        ratios: [N] policy probability over old policy probability.
        advantages: [N].
        eps_low: Clip range below 1, in [0, 1].
        eps_high: Clip range above 1, at least 0.
        bound: c, above 1: the largest ratio that counts where the advantage is negative.

    Returns:
        The loss [N]; [N] bool, the PPO clip took the token's gradient; [N] bool,
        the second bound took it.

    Example:
        >>> import torch
        >>> ratios, advantages = torch.tensor([0.5, 1.0, 10.0]), torch.tensor([1.0, -1.0, -4.0])
        >>> loss, clipped, bounded = dual_clipped_loss(ratios, advantages, 0.2, 0.2, 3.0)
        >>> loss.tolist(), bounded.tolist()
        ([-0.5, 1.0, 12.0], [False, False, True])
    """
    once, clipped = clipped_loss(ratios, advantages, eps_low, eps_high)
    limit = -bound * advantages
    bounded = (advantages < 0) & (once > limit)
    return limit.where(bounded, once), clipped, bounded.detach()
