"""What a request means that names the adapter of a run."""

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from skyrl_vllm.adapters import NAME


class Resolver(LoRAResolver):  # type: ignore[misc]
    """Asked once by vLLM's front, which takes requests, after the first update has come."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """`NAME` is loaded from memory, not from a path; vLLM gives it a number of its own."""
        if lora_name != NAME:
            return None
        return LoRARequest(lora_name=NAME, lora_int_id=1, lora_path="brought by the run")
