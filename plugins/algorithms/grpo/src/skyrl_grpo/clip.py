"""The clipped policy loss: improve what did well, but not further than the clip allows.

Schulman et al. 2017, "Proximal Policy Optimization", arXiv:1707.06347, eq. 7;
two clip ranges as in DAPO, arXiv:2503.14476, §3.1.
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
    """The loss of ``trainer.algorithm.policy_loss_type=regular``."""
    if name != "regular":
        return None
    low, high = settings[AlgorithmConfig].eps_clip_low, settings[AlgorithmConfig].eps_clip_high

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.old_logprobs is not None, "declared in needs"
        ratios = ratio(inputs.logprobs, inputs.old_logprobs)
        policy, clipped = clipped_loss(ratios, inputs.advantages, low, high)
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=clipped.float()),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios.detach()),
                "loss_metrics/ratio_max": TokenMetric(values=ratios.detach(), reduction="max"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}))


def clipped_loss(
    ratios: "Tensor", advantages: "Tensor", eps_low: float, eps_high: float
) -> tuple["Tensor", "Tensor"]:
    """``-min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)`` per token.

    Args:
        ratios: [N] policy probability over old policy probability.
        advantages: [N].
        eps_low: Clip range below 1, in [0, 1].
        eps_high: Clip range above 1, at least 0.

    Returns:
        The loss [N], and [N] bool: the clip made the token's loss larger, so the
        token has no gradient.

    Example:
        >>> import torch
        >>> loss, clipped = clipped_loss(
        ...     torch.tensor([0.5, 1.0, 10.0]), torch.tensor([1.0, -1.0, 4.0]), 0.2, 0.2
        ... )
        >>> [round(x, 6) for x in loss.tolist()], clipped.tolist()
        ([-0.5, 1.0, -4.8], [False, False, True])
    """
    free = -ratios * advantages
    bound = -ratios.clamp(1 - eps_low, 1 + eps_high) * advantages
    return free.maximum(bound), (bound > free).detach()
