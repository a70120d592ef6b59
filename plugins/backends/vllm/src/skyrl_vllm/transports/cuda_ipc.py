"""The hook of ``cuda_ipc``: memory of a GPU that both processes see, by vLLM's own code."""

from functools import partial

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import SyncWeights
from skyrl_vllm.transports import Through
from skyrl_vllm.transports.native import Native, refuse_without_vllm


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """For an engine on the trainer's GPU."""
    if name != "cuda_ipc":
        return None
    refuse_without_vllm(name)
    return Through(partial(Native, "ipc"))
