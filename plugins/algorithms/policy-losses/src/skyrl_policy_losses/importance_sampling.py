"""Importance sampling: the ratio times the advantage, without a clip.

    -r·A,   r = π/π_old

The surrogate that every clipped loss begins with (Kakade and Langford 2002; Schulman et al.
2015, TRPO, arXiv:1502.05477, eq. 14), and Tinker's loss of that name. It trusts r wherever the
policy has gone: for on-policy data and few updates, such as distillation.

Differences from Tinker: the denominator is the policy before this step's updates,
as in SkyRL; where the engine computes with the trainer's own weights these are
the sampler's log-probs. From SkyRL: the log-ratio is clamped to ±20, so that the
loss stays finite; beyond it a token has no gradient.
"""

from typing import TYPE_CHECKING

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


@hookimpl
def loss(name: str) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=importance_sampling``."""
    if name != "importance_sampling":
        return None
    return Loss(fn=importance_sampling, needs=frozenset({"old_logprobs"}))


def importance_sampling(inputs: "LossInputs") -> "LossTerms":
    """The term ``policy``, and how far the ratio has gone."""
    from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

    assert inputs.old_logprobs is not None, "declared in needs"
    ratios = ratio(inputs.logprobs, inputs.old_logprobs)
    return LossTerms(
        terms={"policy": importance_sampling_loss(ratios, inputs.advantages)},
        metrics={
            "loss_metrics/importance_ratio": TokenMetric(values=ratios.detach()),
            "loss_metrics/ratio_max": TokenMetric(values=ratios.detach(), reduction="max"),
        },
    )


def importance_sampling_loss(ratios: "Tensor", advantages: "Tensor") -> "Tensor":
    """``-r·A`` per token.

    Args:
        ratios: [N] policy probability over old policy probability.
        advantages: [N].

    Example:
        >>> import torch
        >>> importance_sampling_loss(torch.tensor([0.5, 10.0]), torch.tensor([1.0, -4.0])).tolist()
        [-0.5, 40.0]
    """
    return -ratios * advantages
