"""CISPO: clips the weight of a token's gradient, so that no token loses it.

MiniMax 2025, "MiniMax-M1", arXiv:2506.13585, eq. 4 and 5:

    -sg(clip(r, 1 - ε_low, 1 + ε_high))·A·logπ

sg stops the gradient: a token beyond the range goes on learning, with the
range's weight; the PPO clip would take its gradient.

Differences from the paper:

1. The anchor of r may be the sampler (``cispo_anchor=rollout``), as in SkyRL,
   for asynchronous runs; old log-probs are then not computed.
2. The paper tunes ε_high and states no value; 4 is SkyRL's. Its ε_low is large enough never to
   bound; SkyRL's 1 (a ratio is not below 0) does the same.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from skyrl_kernel.config import Section
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


class CispoConfig(Section):
    """``trainer.algorithm.cispo``."""

    cispo_eps_clip_low: Annotated[float, Field(ge=0)] = 1.0
    """The weight is clipped below at 1 minus this; 1 or more: not at all."""
    cispo_eps_clip_high: Annotated[float, Field(ge=0)] = 4.0
    """The weight is clipped above at 1 plus this."""
    cispo_anchor: Literal["old", "rollout"] = "old"
    """Denominator of the ratio: the policy before this step's updates, or the sampler."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.cispo``."""
    return {"trainer.algorithm.cispo": CispoConfig}


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=cispo``."""
    if name != "cispo":
        return None
    config = settings[CispoConfig]
    on_sampler = config.cispo_anchor == "rollout"

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        anchor = inputs.sampler_logprobs if on_sampler else inputs.old_logprobs
        assert anchor is not None, "declared in needs"
        ratios = ratio(inputs.logprobs.detach(), anchor)
        policy, weights = cispo_loss(
            inputs.logprobs,
            ratios,
            inputs.advantages,
            config.cispo_eps_clip_low,
            config.cispo_eps_clip_high,
        )
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=(weights != ratios).float()),
                "loss_metrics/cispo/ratio_mean": TokenMetric(values=ratios),
                "loss_metrics/cispo/ratio_clamped_mean": TokenMetric(values=weights),
                "loss_metrics/cispo/ratio_max": TokenMetric(values=ratios, reduction="max"),
                "loss_metrics/cispo/ratio_min": TokenMetric(values=ratios, reduction="min"),
            },
        )

    return Loss(
        fn=fn,
        needs=frozenset() if on_sampler else frozenset({"old_logprobs"}),
        needs_sampler_logprobs=on_sampler,
    )


def cispo_loss(
    logprobs: "Tensor", ratios: "Tensor", advantages: "Tensor", eps_low: float, eps_high: float
) -> tuple["Tensor", "Tensor"]:
    """``-sg(clip(r, 1 - ε_low, 1 + ε_high))·A·logπ`` per token.

    Args:
        logprobs: [N] of the policy; carries the gradient.
        ratios: [N] policy probability over the anchor's.
        advantages: [N].
        eps_low: Clip range below 1, at least 0.
        eps_high: Clip range above 1, at least 0.

    Returns:
        The loss [N], and the weights [N] after clipping.

    Example:
        >>> import torch
        >>> logprobs, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, -3.0])
        >>> loss, weights = cispo_loss(logprobs, torch.tensor([1.0, 9.0]), advantages, 1.0, 4.0)
        >>> loss.tolist(), weights.tolist()  # 1·1·1; 5·-3·2
        ([1.0, -30.0], [1.0, 5.0])
    """
    weights = ratios.detach().clamp(1 - eps_low, 1 + eps_high)
    return -weights * advantages * logprobs, weights
