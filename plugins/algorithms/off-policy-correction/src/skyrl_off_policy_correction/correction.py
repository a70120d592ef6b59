"""What each token's loss is multiplied by, and the metrics of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skyrl_kernel.torch import TokenMetric
from skyrl_kernel.torch.precision import at_least_float32
from skyrl_kernel.torch.ratios import MAX_LOG_RATIO
from skyrl_off_policy_correction.config import OffPolicyCorrectionConfig

Metrics = dict[str, TokenMetric]
PREFIX = "loss_metrics"


@torch.no_grad()
def correction(
    log_ratios: Tensor, trajectory: Tensor, config: OffPolicyCorrectionConfig
) -> tuple[Tensor, Metrics]:
    """The weight of each token, 0 where it is masked.

    Args:
        log_ratios: [N] ``old - sampler`` of the trained tokens, nats; counted as
            within ±`MAX_LOG_RATIO`.
        trajectory: [N] number of each token's trajectory; whole trajectories.
        config: What to do.

    Returns:
        [N] weights, at least 0, and metrics: a fraction of tokens or of those
        trajectories that have a trained token.
    """
    log_ratios = at_least_float32(log_ratios).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratios = log_ratios.exp()
    owners = _Owners.of(trajectory)
    metrics: Metrics = {
        f"{PREFIX}/is_ratio_mean": TokenMetric(values=ratios),
        f"{PREFIX}/is_ratio_std": TokenMetric(values=ratios, reduction="std"),
        f"{PREFIX}/is_ratio_max": TokenMetric(values=ratios, reduction="max"),
        f"{PREFIX}/is_ratio_min": TokenMetric(values=ratios, reduction="min"),
    }
    kept = torch.ones_like(ratios, dtype=torch.bool)
    kept &= _without_outliers(ratios, owners, config, metrics)
    kept &= _without_far_tokens(ratios, kept, config, metrics)
    weights = _truncated(log_ratios, kept, owners, config, metrics)
    kept &= _without_far_trajectories(log_ratios, kept, owners, config, metrics)
    return weights * kept, metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class _Owners:
    """Which token belongs to which trajectory."""

    place: Tensor
    """[N] trajectory of each token, counted from 0."""
    count: int
    """Trajectories."""

    @classmethod
    def of(cls, trajectory: Tensor) -> "_Owners":
        numbers, place = torch.unique(trajectory, return_inverse=True)
        return cls(place=place, count=len(numbers))

    def sum(self, values: Tensor) -> Tensor:
        """[N] → [trajectories]."""
        return values.new_zeros(self.count).index_add(0, self.place, values)

    def any(self, is_so: Tensor) -> Tensor:
        """[N] bool → [trajectories] bool."""
        return self.sum(is_so.float()) > 0


def _without_outliers(
    ratios: Tensor, owners: _Owners, config: OffPolicyCorrectionConfig, metrics: Metrics
) -> Tensor:
    """False in trajectories that have a token beyond the outlier thresholds."""
    low, high = config.outlier_token_is_threshold_low, config.outlier_token_is_threshold_high
    if low is None and high is None:
        return torch.ones_like(ratios, dtype=torch.bool)
    under = owners.any(ratios < (0.0 if low is None else low))
    over = owners.any(ratios > (float("inf") if high is None else high))
    _tell(metrics, "outlier_seq", under, over)
    return ~(under | over)[owners.place]


def _without_far_tokens(
    ratios: Tensor, kept: Tensor, config: OffPolicyCorrectionConfig, metrics: Metrics
) -> Tensor:
    """False where a token is beyond its own thresholds."""
    low, high = config.token_mask_is_threshold_low, config.token_mask_is_threshold_high
    if low is None or high is None:
        return torch.ones_like(kept)
    is_near = (ratios >= low) & (ratios <= high)
    metrics[f"{PREFIX}/token_mask_ratio"] = TokenMetric(values=(kept & ~is_near).float())
    return is_near


def _truncated(
    log_ratios: Tensor,
    kept: Tensor,
    owners: _Owners,
    config: OffPolicyCorrectionConfig,
    metrics: Metrics,
) -> Tensor:
    """[N] the ratio by token or by trajectory, but no more than its cap."""
    if config.tis_ratio_type is None:
        return torch.ones_like(log_ratios)
    if config.tis_ratio_type == "token":
        ratios, cap = log_ratios.exp(), config.token_tis_ratio_clip_high
        is_clipped = kept & (ratios > cap)
        metrics[f"{PREFIX}/tis_token_clip_high_ratio"] = TokenMetric(values=is_clipped.float())
        return ratios.clamp(max=cap)
    products, cap = _products(log_ratios, kept, owners), config.sequence_tis_ratio_clip_high
    metrics[f"{PREFIX}/tis_seq_clip_high_ratio"] = TokenMetric(values=(products > cap).float())
    return products.clamp(max=cap)[owners.place]


def _without_far_trajectories(
    log_ratios: Tensor,
    kept: Tensor,
    owners: _Owners,
    config: OffPolicyCorrectionConfig,
    metrics: Metrics,
) -> Tensor:
    """False in trajectories whose product or geometric mean of ratios is out of bounds."""
    if config.sequence_mask_metric is None:
        return torch.ones_like(kept)
    if config.sequence_mask_metric == "product":
        name, low, high = "product", config.product_mask_low, config.product_mask_high
        values = _products(log_ratios, kept, owners)
    else:
        name, low, high = "geo", config.geo_mask_low, config.geo_mask_high
        counts = owners.sum(kept.to(log_ratios.dtype)).clamp(min=1)
        values = (owners.sum(log_ratios * kept) / counts).exp()
    under, over = values < low, values > high
    _tell(metrics, f"{name}_sequence_mask", under, over)
    return ~(under | over)[owners.place]


def _products(log_ratios: Tensor, kept: Tensor, owners: _Owners) -> Tensor:
    """[trajectories] product of the ratios of tokens that are still there."""
    return owners.sum(log_ratios * kept).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _tell(metrics: Metrics, name: str, under: Tensor, over: Tensor) -> None:
    """Fractions of trajectories, which a mask took out for either reason."""
    metrics[f"{PREFIX}/{name}_masked_ratio"] = TokenMetric(values=(under | over).float())
    metrics[f"{PREFIX}/{name}_over_high_ratio"] = TokenMetric(values=over.float())
    metrics[f"{PREFIX}/{name}_under_low_ratio"] = TokenMetric(values=under.float())
