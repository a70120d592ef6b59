"""Clip-Cov: some of the tokens that drive entropy down lose their gradient.

Cui et al. 2025, arXiv:2505.22617, §4.2: of the tokens whose covariance c lies between
two bounds, far above the average, a random few (a fraction of all tokens) are left
out of the update. The rest is the PPO clip. `skyrl_policy_losses.covariance` has c.

Differences from the paper:

1. A token left out has loss 0, as in SkyRL; the paper keeps its value and detaches it.
   The gradient is the same.
2. Tokens that the PPO clip leaves without gradient are not chosen, as in the
   authors' code.
3. The authors' scripts open the PPO clip to ±1, as the preset does; SkyRL's default is ±0.2.

Differences from SkyRL:

1. c is of the advantages themselves and over the whole mini-batch. SkyRL divides
   advantages by the number of tokens first, so that c never reaches its bounds, and
   takes means over a micro-batch.
2. The random choice is that of the smallest hashes of (seed, trajectory,
   position): the same for the same seed, whatever the split over micro-batches and ranks.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, Field, model_validator

from skyrl_grpo import clipped_loss
from skyrl_kernel.config import AlgorithmConfig, Section
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings
from skyrl_policy_losses.covariance import are_among, by_key, columns, covariances

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


class ClipCovConfig(Section):
    """``trainer.algorithm.clip_cov``."""

    clip_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0002
    """Fraction of a mini-batch's trained tokens that are left out; at least one is, if any may be."""
    clip_cov_lb: float = 1.0
    """Tokens of a larger covariance may be left out; nats × advantage."""
    clip_cov_ub: float = 5.0
    """Tokens of a smaller covariance may be left out; nats × advantage."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.clip_cov_lb >= self.clip_cov_ub:
            raise ValueError(
                f"clip_cov_lb={self.clip_cov_lb} is not below clip_cov_ub={self.clip_cov_ub}, so no "
                "token could be left out; lower one or raise the other"
            )
        return self


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.clip_cov``."""
    return {"trainer.algorithm.clip_cov": ClipCovConfig}


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=clip_cov``."""
    if name != "clip_cov":
        return None
    config, algorithm = settings[ClipCovConfig], settings[AlgorithmConfig]

    def clipped_and_ratios(inputs: "LossInputs") -> tuple["Tensor", "Tensor", "Tensor"]:
        from skyrl_kernel.torch import ratio

        assert inputs.old_logprobs is not None, "declared in needs"
        ratios = ratio(inputs.logprobs, inputs.old_logprobs)
        low, high = algorithm.eps_clip_low, algorithm.eps_clip_high
        return *clipped_loss(ratios, inputs.advantages, low, high), ratios.detach()

    def prepare(inputs: "LossInputs") -> dict[str, "Tensor"]:
        return columns(inputs) | {"clipped": clipped_and_ratios(inputs)[1]}

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric

        all_tokens = by_key(inputs.minibatch)
        part = covariances(all_tokens["logprobs"], all_tokens["advantages"])
        chosen = clip_cov_choice(
            part,
            all_tokens["clipped"],
            config.clip_ratio,
            config.clip_cov_lb,
            config.clip_cov_ub,
        )
        left_out = are_among(inputs, all_tokens["key"][chosen])
        policy, clipped, ratios = clipped_and_ratios(inputs)
        return LossTerms(
            terms={"policy": policy.masked_fill(left_out, 0.0)},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=left_out.float()),
                "loss_metrics/ppo_clip_ratio": TokenMetric(values=clipped.float()),
                "loss_metrics/covariance_mean": TokenMetric(values=part),
                "loss_metrics/covariance_max": TokenMetric(values=part, reduction="max"),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios),
                "loss_metrics/ratio_max": TokenMetric(values=ratios, reduction="max"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}), prepare=prepare)


def clip_cov_choice(
    part: "Tensor", clipped: "Tensor", clip_ratio: float, lower: float, upper: float
) -> "Tensor":
    """Which tokens lose their gradient: the first few that may.

    Args:
        part: [M] covariance of each token, in the order in which tokens are chosen.
        clipped: [M] bool, the PPO clip took the token's gradient; it is not chosen.
        clip_ratio: Fraction of the M tokens; at least one is chosen, if any may be.
        lower: A chosen token's covariance is above this.
        upper: And below this.

    Returns:
        [K] int64 places.

    Example:
        >>> import torch
        >>> part, clipped = torch.tensor([0.5, 2.0, 3.0, 9.0, 4.0]), torch.zeros(5).bool()
        >>> clip_cov_choice(part, clipped, 0.4, 1.0, 5.0).tolist()  # 0.4 of 5 tokens: 2
        [1, 2]
    """
    may = (part > lower) & (part < upper) & ~clipped
    count = max(int(clip_ratio * len(part)), 1)
    return may.nonzero()[:count, 0]
