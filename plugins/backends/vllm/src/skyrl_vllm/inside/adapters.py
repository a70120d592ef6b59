"""The adapter that a run trains, in vLLM's processes.

vLLM's own way to a newer adapter, ``load_inplace``, is not taken: the request itself carries
the order and the folder, and every step that computes it loads the folder again, so a request
that was begun before an update would bring the old adapter back.
"""

from itertools import chain

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from skyrl_vllm.adapters import NAME, is_adapter
from skyrl_vllm.layout import Weights


def are_adapter(received: Weights) -> bool:
    """Whether these are an adapter's tensors rather than a model's."""
    return any(is_adapter(name) for name, _ in received)


def made(model: torch.nn.Module, received: Weights) -> LoRAModel:
    """An adapter that vLLM can compute with; the model is left alone.

    Raises:
        ValueError: The server serves no adapters or smaller ones, or a layer cannot have one.
    """
    manager = _manager(model)
    rank = max(tensor.shape[0] for name, tensor in received if ".lora_A." in name)
    if rank > manager.lora_config.max_lora_rank:
        raise ValueError(
            f"adapters of rank {rank} came, and this server takes up to "
            f"{manager.lora_config.max_lora_rank} (--max-lora-rank)"
        )
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    found = LoRAModel.from_lora_tensors(
        1,  # vLLM's number for it, which `give_held_ones` changes
        {name: tensor.clone() for name, tensor in received},  # theirs is a file, to be written over
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),  # B is scaled already
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    able = {*manager.modules, *chain.from_iterable(manager.packed_modules.values())}
    if unable := sorted({*found.loras} - able):
        raise ValueError(f"vLLM computes without adapters in {', '.join(unable[:3])}")
    return found


def put(adapter: LoRAModel) -> None:
    """Compute with it from the next step on.

    vLLM forgets every adapter after an update, and each step loads those that its requests name
    and that are not there: also requests that were begun with the one before.
    """
    _held[NAME] = adapter


_held: dict[str, LoRAModel] = {}
"""What `NAME` is, in the process that computes."""


def give_held_ones() -> None:
    """Let vLLM load `NAME` from this process's memory, and all else from where it does."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    from_disk = WorkerLoRAManager._load_adapter

    def load(self: WorkerLoRAManager, request: LoRARequest) -> LoRAModel:
        held = _held.get(request.lora_name)
        return held.clone(request.lora_int_id) if held else from_disk(self, request)

    WorkerLoRAManager._load_adapter = load


def _manager(model: torch.nn.Module) -> LoRAModelManager:
    manager = getattr(model, "lora_manager", None)
    if manager is None:
        raise ValueError("an adapter came, and this server serves none (--enable-lora)")
    return manager
