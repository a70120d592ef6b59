"""The hook of ``nccl``: broadcasts between GPUs, by vLLM's own code."""

from functools import partial

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings, SyncWeights
from skyrl_vllm.transports import Through
from skyrl_vllm.transports.native import Native, through_ipc


@hookimpl
def sync_weights(name: str, settings: Settings) -> SyncWeights | None:
    """For engines with GPUs of their own; as ``cuda_ipc`` for one on the trainer's."""
    if name != "nccl":
        return None
    if settings[TrainerConfig].placement.colocate_all:
        return Through(through_ipc(settings[GeneratorConfig]))
    return Through(partial(Native, "nccl"))
