"""SAPO: a smooth gate in place of the clip.

Gao et al. 2025, "Soft Adaptive Policy Optimization", arXiv:2511.20347:

    -f(r)·A,   f(r) = 4/τ · σ(τ·(r - 1)),   τ = τ_pos if A > 0 else τ_neg

At r = 1 the slope of f is 1, so that on-policy the gradient is the plain policy
gradient; away from 1 it falls as sech²(τ/2·(r - 1)), faster for larger τ. τ_neg is
above τ_pos because a negative advantage raises many unsampled tokens at once.

Differences from the paper: none in the loss. The paper averages per sequence first:
``trainer.algorithm.loss_reduction=sequence_mean``, which the preset sets and whose absence is
warned of. From SkyRL: the metric ``clip_ratio``, there always 0, is ``gate_mean``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from skyrl_kernel.config import Section
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, RunInfo, Settings
from skyrl_policy_losses.by_sequence import warn_of_another_reduction

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


class SapoConfig(Section):
    """``trainer.algorithm.sapo``."""

    tau_pos: Annotated[float, Field(gt=0)] = 1.0
    """τ where the advantage is positive; larger: the gradient falls faster away from ratio 1."""
    tau_neg: Annotated[float, Field(gt=0)] = 1.05
    """τ where it is not."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.sapo``."""
    return {"trainer.algorithm.sapo": SapoConfig}


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=sapo``."""
    if name != "sapo":
        return None
    config = settings[SapoConfig]

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.old_logprobs is not None, "declared in needs"
        ratios = ratio(inputs.logprobs, inputs.old_logprobs)
        policy, slope = sapo_loss(ratios, inputs.advantages, config.tau_pos, config.tau_neg)
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/gate_mean": TokenMetric(values=slope),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios.detach()),
                "loss_metrics/ratio_max": TokenMetric(values=ratios.detach(), reduction="max"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}))


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Warn of another reduction than the paper's."""
    warn_of_another_reduction(run, ("sapo",))


def sapo_loss(
    ratios: "Tensor", advantages: "Tensor", tau_pos: float, tau_neg: float
) -> tuple["Tensor", "Tensor"]:
    """``-4/τ·σ(τ(r - 1))·A`` per token.

    Args:
        ratios: [N] policy probability over old policy probability.
        advantages: [N].
        tau_pos: τ where the advantage is positive.
        tau_neg: τ where it is negative or 0.

    Returns:
        The loss [N]; and [N] the gate's slope f'(r) in [0, 1], by which the gradient is less
        than without a gate; detached.

    Example:
        >>> import torch
        >>> loss, slope = sapo_loss(torch.ones(2), torch.tensor([1.0, -1.0]), 1.0, 2.0)
        >>> loss.tolist(), slope.tolist()  # 4/τ·½
        ([-2.0, 1.0], [1.0, 1.0])
    """
    tau = ratios.new_full(ratios.shape, tau_neg).masked_fill(advantages > 0, tau_pos)
    openness = (tau * (ratios - 1)).sigmoid()
    slope = (4 * openness * (1 - openness)).detach()
    return -4 / tau * openness * advantages, slope
