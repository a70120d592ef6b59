"""The hook of ``cuda_ipc``: memory of a GPU that both processes see, by vLLM's own code."""

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings, SyncWeights
from skyrl_vllm.transports import Through
from skyrl_vllm.transports.native import through_ipc


@hookimpl
def sync_weights(name: str, settings: Settings) -> SyncWeights | None:
    """For an engine on the trainer's GPU."""
    if name != "cuda_ipc":
        return None
    return Through(through_ipc(settings[GeneratorConfig]))
