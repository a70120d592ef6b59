"""KL-Cov: the tokens that drive entropy down most pay for their change.

Cui et al. 2025, arXiv:2505.22617, §4.2: the tokens of the largest covariance c, a
fraction of all, have a penalty on how far they moved. No token is clipped:

    -r·A                                for most tokens
    -r·A + β·|logπ - logπ_old|          for the fraction of the largest c

`skyrl_policy_losses.covariance` has c.

Differences from the paper: none in the loss. Its fraction is 0.2 % (7B) or 0.02 % (32B), which the
authors' code takes in percent; the preset sets 0.002. SkyRL's default, kept here, is 0.2: a fifth
of all tokens.

Differences from SkyRL:

1. c, and the penalty's place beside -r·A, are of the advantages themselves.
   SkyRL divides advantages by the number of tokens first and leaves the penalty as
   it is, so that the penalty outweighs the rest by that number.
2. c's means and the choice are over the whole mini-batch, not a micro-batch.
3. Among tokens of equal c the hash of (seed, trajectory, position) decides.
4. The log-ratio of r is clamped to ±20, so that the loss stays finite.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from skyrl_kernel.config import Section
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings
from skyrl_policy_losses.covariance import are_among, by_key, columns, covariances

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms


class KlCovConfig(Section):
    """``trainer.algorithm.kl_cov``."""

    kl_cov_frac: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Fraction of a mini-batch's trained tokens with the penalty; at least one has it."""
    ppo_kl_coef: Annotated[float, Field(ge=0)] = 1.0
    """The penalty's coefficient, in units of advantage per nat."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.algorithm.kl_cov``."""
    return {"trainer.algorithm.kl_cov": KlCovConfig}


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The loss of ``trainer.algorithm.policy_loss_type=kl_cov``."""
    if name != "kl_cov":
        return None
    config = settings[KlCovConfig]

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric, ratio

        assert inputs.old_logprobs is not None, "declared in needs"
        all_tokens = by_key(inputs.minibatch)
        part = covariances(all_tokens["logprobs"], all_tokens["advantages"])
        chosen = kl_cov_choice(part, config.kl_cov_frac)
        pays = are_among(inputs, all_tokens["key"][chosen])
        ratios = ratio(inputs.logprobs, inputs.old_logprobs)
        moved = (inputs.logprobs - inputs.old_logprobs).abs()
        penalty = config.ppo_kl_coef * moved.masked_fill(~pays, 0.0)
        return LossTerms(
            terms={"policy": -ratios * inputs.advantages + penalty},
            metrics={
                "loss_metrics/kl_cov_ratio": TokenMetric(values=pays.float()),
                "loss_metrics/kl_cov_penalty": TokenMetric(values=penalty.detach()),
                "loss_metrics/covariance_mean": TokenMetric(values=part),
                "loss_metrics/covariance_max": TokenMetric(values=part, reduction="max"),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios.detach()),
                "loss_metrics/ratio_max": TokenMetric(values=ratios.detach(), reduction="max"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}), prepare=columns)


def kl_cov_choice(part: "Tensor", fraction: float) -> "Tensor":
    """Which tokens pay: those of the largest covariance, earlier ones among equals.

    Args:
        part: [M] covariance of each token.
        fraction: Of the M tokens; at least one is chosen.

    Returns:
        [K] int64 places.

    Example:
        >>> import torch
        >>> kl_cov_choice(torch.tensor([0.5, 2.0, -3.0, 2.0, 2.0]), 0.4).tolist()
        [1, 3]
    """
    count = max(int(fraction * len(part)), 1)
    return part.argsort(descending=True, stable=True)[:count]
