"""DPPO: a trust region by divergence of probabilities, not by their ratio.

Qi et al. 2026, "Rethinking the Trust Region in LLM Reinforcement Learning",
arXiv:2602.04879. With p the policy's and μ the sampler's probability of a token,

    -p/μ·A·keep
    keep = 0 where A > 0, p > μ, D > δ_high; or A < 0, p < μ, D > δ_low
    binary_tv: D = |p - μ|                                                  eq. 13
    binary_kl: D = μ·log(μ/p) + (1 - μ)·log((1 - μ)/(1 - p))                eq. 14

A rare token may change its ratio manyfold while hardly any probability moves:
the PPO clip takes its gradient, DPPO does not. A common one may move a tenth of
all probability within the PPO clip's range.

Differences from the paper: its Top-K divergences are left out (it finds no gain over
the binary ones). The authors' code also caps the weight p/μ at 20 and stops its
gradient, which is the same gradient below that cap; here, as in SkyRL, it is
exp of the log-ratio clamped to ±20. From SkyRL: the sampler's log-probs are
required; it falls back to old ones where there are none.
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

Divergence = Literal["binary_tv", "binary_kl"]

EPSILON = 1e-8
"""Added to 1 - μ and 1 - p, as in SkyRL."""


class DppoConfig(Section):
    """``trainer.algorithm.dppo``."""

    dppo_type: Divergence = "binary_tv"
    """Divergence of a token's two-way distribution: total variation, or KL(sampler ‖ policy)."""
    delta_low: Annotated[float, Field(ge=0)] = 0.2
    """Largest divergence at which a token may become less likely; a probability, or nats."""
    delta_high: Annotated[float, Field(ge=0)] = 0.2
    """Largest divergence at which a token may become more likely; a probability, or nats."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.dppo``."""
    return {"trainer.algorithm.dppo": DppoConfig}


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=dppo``."""
    if name != "dppo":
        return None
    config = settings[DppoConfig]

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.sampler_logprobs is not None, "declared in needs"
        far = divergence(inputs.logprobs.detach(), inputs.sampler_logprobs, config.dppo_type)
        policy, kept = dppo_loss(
            inputs.logprobs,
            inputs.sampler_logprobs,
            inputs.advantages,
            far,
            config.delta_low,
            config.delta_high,
        )
        ratios = ratio(inputs.logprobs.detach(), inputs.sampler_logprobs)
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=(~kept).float()),
                "loss_metrics/divergence_mean": TokenMetric(values=far),
                "loss_metrics/divergence_max": TokenMetric(values=far, reduction="max"),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios),
                "loss_metrics/ratio_max": TokenMetric(values=ratios, reduction="max"),
            },
        )

    return Loss(fn=fn, needs_sampler_logprobs=True)


def divergence(logprobs: "Tensor", sampler_logprobs: "Tensor", kind: Divergence) -> "Tensor":
    """D of each token between "this token" and "any other", sampler against policy.

    Args:
        logprobs: [N] of the policy, nats.
        sampler_logprobs: [N] of the sampler, nats.
        kind: ``binary_tv`` (in [0, 1]) or ``binary_kl`` (nats, KL(sampler ‖ policy)).

    Example:
        >>> import torch
        >>> now, then = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log()
        >>> [round(x, 4) for x in divergence(now, then, "binary_tv").tolist()]
        [0.0, 0.25]
        >>> [round(x, 4) for x in divergence(now, then, "binary_kl").tolist()]  # ¼log½ + ¾log1.5
        [0.0, 0.1308]
    """
    now, then = (x.exp().clamp(max=1.0) for x in (logprobs, sampler_logprobs))  # rounding
    if kind == "binary_tv":
        return (now - then).abs()
    others = (1 - then) * ((1 - then + EPSILON) / (1 - now + EPSILON)).log()
    return then * (sampler_logprobs - logprobs) + others


def dppo_loss(
    logprobs: "Tensor",
    sampler_logprobs: "Tensor",
    advantages: "Tensor",
    far: "Tensor",
    delta_low: float,
    delta_high: float,
) -> tuple["Tensor", "Tensor"]:
    """``-p/μ·A`` per token, 0 where the token has left the trust region and would go on.

    Args:
        logprobs: [N] of the policy; carries the gradient.
        sampler_logprobs: [N] of the sampler.
        advantages: [N].
        far: [N] `divergence`, detached.
        delta_low: Its bound for tokens that became less likely.
        delta_high: Its bound for tokens that became more likely.

    Returns:
        The loss [N], and [N] bool: the token keeps its gradient.

    Example:
        >>> import torch
        >>> then, now = torch.full((3,), -1.0), torch.tensor([-0.3, -2.0, -0.9])
        >>> advantages, far = torch.tensor([1.0, -1.0, 1.0]), divergence(now, then, "binary_tv")
        >>> loss, kept = dppo_loss(now, then, advantages, far, 0.2, 0.2)
        >>> [round(x, 6) for x in loss.tolist()], kept.tolist()
        ([0.0, 0.0, -1.105171], [False, False, True])
    """
    from skyrl_kernel.torch import ratio

    moved = logprobs.detach() - sampler_logprobs
    left = ((advantages > 0) & (moved > 0) & (far > delta_high)) | (
        (advantages < 0) & (moved < 0) & (far > delta_low)
    )
    surrogate = -ratio(logprobs, sampler_logprobs) * advantages
    return surrogate.masked_fill(left, 0.0), ~left
