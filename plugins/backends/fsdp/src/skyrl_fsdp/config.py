"""Config that only this plugin reads."""

from typing import Literal

from skyrl_kernel.config.tree import Section


class FsdpConfig(Section):
    """``trainer.fsdp``: where the trainer computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the first CUDA device, or the CPU where there is none."""
