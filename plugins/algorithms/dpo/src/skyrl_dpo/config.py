"""Config that only this plugin reads."""

from typing import Annotated, Literal

from pydantic import Field

from skyrl_kernel.config.section import Section

LossType = Literal["sigmoid", "ipo", "ipo_mean", "hinge"]


class DpoConfig(Section):
    """``trainer.algorithm.dpo``: how strongly a pair is pulled apart."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """β: how much staying near the reference weighs; smaller lets the policy go further."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Fraction of pairs whose labels are taken to be the wrong way round; ``sigmoid`` only."""
    loss_type: LossType = "sigmoid"
    """DPO's own, IPO's squared error (of sums or of means over tokens), or a hinge at a margin of 1."""
