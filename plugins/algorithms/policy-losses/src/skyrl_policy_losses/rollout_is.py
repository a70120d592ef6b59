"""Rollout-IS: the ratio to the sampler weighs a token, and drops it outside a range.

SkyRL's loss for asynchronous runs, where the policy that sampled is not the one
before this step's updates, and nothing needs the latter:

    -sg(r)·A·logπ  where 1 - ε_low < r < 1 + ε_high, else 0;   r = π/π_sampler

sg stops the gradient, which for the tokens inside is that of -r·A. Both
bounds hold for either sign of the advantage, unlike the PPO clip's. There is no
paper of that name; masking on both sides of the ratio to the sampler is IcePop's
(Ling Team 2025, "Every Step Evolves", arXiv:2510.18855), there of old over sampler.

Differences from SkyRL: none.
"""

from typing import TYPE_CHECKING

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=rollout_is``."""
    if name != "rollout_is":
        return None
    low, high = settings[AlgorithmConfig].eps_clip_low, settings[AlgorithmConfig].eps_clip_high

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.sampler_logprobs is not None, "declared in needs"
        ratios = ratio(inputs.logprobs.detach(), inputs.sampler_logprobs)
        policy, inside = rollout_is_loss(inputs.logprobs, ratios, inputs.advantages, low, high)
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=(~inside).float()),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios),
                "loss_metrics/ratio_max": TokenMetric(values=ratios, reduction="max"),
            },
        )

    return Loss(fn=fn, needs_sampler_logprobs=True)


def rollout_is_loss(
    logprobs: "Tensor", ratios: "Tensor", advantages: "Tensor", eps_low: float, eps_high: float
) -> tuple["Tensor", "Tensor"]:
    """``-sg(r)·A·logπ`` per token, 0 unless 1 - ε_low < r < 1 + ε_high.

    Args:
        logprobs: [N] of the policy; carries the gradient.
        ratios: [N] policy probability over the sampler's.
        advantages: [N].
        eps_low: Range below 1, in [0, 1]; the bound itself is outside.
        eps_high: Range above 1, at least 0; the bound itself is outside.

    Returns:
        The loss [N], and [N] bool: the token is inside.

    Example:
        >>> import torch
        >>> logprobs, ratios = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([1.0, 1.25, 0.5])
        >>> loss, inside = rollout_is_loss(logprobs, ratios, torch.full((3,), 2.0), 0.2, 0.25)
        >>> loss.tolist(), inside.tolist()
        ([2.0, 0.0, 0.0], [True, False, False])
    """
    weights = ratios.detach()
    inside = (weights > 1 - eps_low) & (weights < 1 + eps_high)
    return -weights.masked_fill(~inside, 0.0) * advantages * logprobs, inside
