"""``….fsdp_config``: how the weights of one model are spread over the ranks that train."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from skyrl_kernel.config.section import Section


class MixedPrecisionConfig(Section):
    """``….fsdp_config.mixed_precision``: in what precision weights and gradients travel between ranks."""

    param_dtype: Literal["bf16", "fp32"] = "bf16"
    """Weights as they are gathered where ``trainer.bf16`` computes in bfloat16; what they are gathered from
    is float32. Without ``trainer.bf16``: fp32."""
    reduce_dtype: Literal["bf16", "fp32"] = "fp32"
    """Gradients as they are summed over ranks."""


class ShardingConfig(Section):
    """``….fsdp_config``: how weights are spread over ranks; one rank has them whole."""

    cpu_offload: bool = False
    """Weights, gradients and optimizer are in the machine's memory, of one rank too; the device has the
    layers that compute."""
    reshard_after_forward: bool = True
    """Layers give their weights back after the forward pass and gather them again for the backward pass:
    less memory, more traffic."""
    fsdp_size: Annotated[int, Field(ge=-1)] = -1
    """Ranks that have one copy of the weights; a divisor of their number. -1: all."""
    mixed_precision: MixedPrecisionConfig = Field(default_factory=MixedPrecisionConfig)
    """What travels between ranks."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _null_is_the_default(cls, asked: Any) -> Any:
        return {} if asked is None else asked
