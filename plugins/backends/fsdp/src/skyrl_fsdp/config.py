"""Config that only this plugin reads."""

from typing import Annotated, Literal

from pydantic import Field

from skyrl_kernel.config.section import Seconds, Section


class FsdpConfig(Section):
    """``trainer.fsdp``: where the trainer computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the first CUDA device, or the CPU where there is none."""
    num_threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of one torch operation in this process; null leaves torch's choice. 1 is the
    fastest for models of a million parameters on a busy machine, where threads wait for each other,
    and gives the same numbers on any number of cores."""
    timeout_s: Seconds = 600.0
    """Longest wait for another rank, which then is taken for lost: more than what one rank may be behind
    another in one call, such as the slowest read of a model."""
