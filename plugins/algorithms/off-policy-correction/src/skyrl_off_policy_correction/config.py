"""``trainer.algorithm.off_policy_correction``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from skyrl_kernel.config import Section

Ratio = Annotated[float, Field(gt=0)]


class OffPolicyCorrectionConfig(Section):
    """What is done about tokens whose ratio of old to sampler probability is not 1.

    Names and defaults are SkyRL's. Bounds belong to what is inside.
    """

    tis_ratio_type: Literal["token", "sequence"] | None = None
    """Multiply the loss by the ratio of each token, or by the product over its trajectory."""
    token_tis_ratio_clip_high: Ratio = 2.0
    """Most that a token's ratio counts."""
    sequence_tis_ratio_clip_high: Ratio = 5.0
    """Most that a trajectory's product counts."""
    sequence_mask_metric: Literal["product", "geometric"] | None = None
    """Take out trajectories by the product of their ratios, or by the geometric mean."""
    product_mask_low: Annotated[float, Field(ge=0)] = 0.5
    """Least product that stays."""
    product_mask_high: Ratio = 2.0
    """Greatest product that stays."""
    geo_mask_low: Annotated[float, Field(ge=0)] = 0.99
    """Least geometric mean that stays."""
    geo_mask_high: Ratio = 1.01
    """Greatest geometric mean that stays."""
    outlier_token_is_threshold_low: Ratio | None = None
    """A ratio below it takes the whole trajectory out. SkyRL's docs: 1e-4."""
    outlier_token_is_threshold_high: Ratio | None = None
    """A ratio above it takes the whole trajectory out. SkyRL's docs: 100."""
    token_mask_is_threshold_low: Ratio | None = None
    """A ratio below it takes the token out; comes with the next."""
    token_mask_is_threshold_high: Ratio | None = None
    """A ratio above it takes the token out; comes with the one before."""

    @property
    def is_on(self) -> bool:
        """True if anything is corrected."""
        switches = (
            self.tis_ratio_type,
            self.sequence_mask_metric,
            self.outlier_token_is_threshold_low,
            self.outlier_token_is_threshold_high,
            self.token_mask_is_threshold_low,
            self.token_mask_is_threshold_high,
        )
        return any(switch is not None for switch in switches)

    @model_validator(mode="after")
    def _lows_are_below_highs(self) -> "OffPolicyCorrectionConfig":
        for what in (
            "product_mask",
            "geo_mask",
            "outlier_token_is_threshold",
            "token_mask_is_threshold",
        ):
            low, high = getattr(self, f"{what}_low"), getattr(self, f"{what}_high")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"trainer.algorithm.off_policy_correction.{what}_low={low:g} is above "
                    f"{what}_high={high:g}, so nothing would be left; exchange them"
                )
        return self
