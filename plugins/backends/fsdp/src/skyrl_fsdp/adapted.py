"""A model with adapters, seen from outside: as if all its weights were trained.

Which tensors a checkpoint keeps, how the model computes without its adapters (that
is the reference), and how it looks with them added to the weights they stand on.
All of it takes models without adapters too. PEFT need not be installed for those.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Dropout, Module

from skyrl_transformers.loading import distinct_tensors

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.lora import Linear as Adapted

ADAPTER = "default"
"""PEFT's own name for the first adapter of a model; there is no second."""
ADAPTER_FOLDER = "lora_adapter"
"""Folder of the adapter in an export, as in SkyRL's checkpoints."""
WRAPPED = ".base_layer."
"""What PEFT puts between a layer's path and the names of its own tensors."""


def adapted_layers(module: Module) -> dict[str, "Adapted"]:
    """Path → PEFT's layer, of those that have an adapter; empty without any."""
    return {
        path: cast("Adapted", layer)
        for path, layer in module.named_modules()
        if hasattr(layer, "lora_A")
    }


@contextlib.contextmanager
def adapters_off(module: Module) -> Iterator[None]:
    """The model computes in here as before training, bit for bit."""
    # PEFT's own switch also changes `requires_grad`, which a sharded model keeps twice and
    # would be left with two opinions about.
    layers = adapted_layers(module).values()
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextlib.contextmanager
def dropout_drawn_from(module: Module, *seed: int) -> Iterator[None]:
    """What ``dropout`` leaves out depends on the seed alone; without dropout nothing happens."""
    layers = adapted_layers(module).values()
    if not any(isinstance(layer.lora_dropout[ADAPTER], Dropout) for layer in layers):
        yield
        return
    with random_numbers(b"dropout", *seed):
        yield


@contextlib.contextmanager
def random_numbers(what: bytes, *seed: int) -> Iterator[None]:
    """Torch draws in here from generators of its own: the CPU's, and that of the GPU in use."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if used else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([*what, *seed]).generate_state(1)[0]))
        yield


def kept_tensors(module: Module) -> dict[str, Tensor]:
    """What a checkpoint keeps, by name: all of a model, or with adapters what is trained."""
    tensors = distinct_tensors(module)
    if not adapted_layers(module):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@torch.no_grad()
def merged_tensors(
    module: Module, whole: Callable[[Tensor], Tensor] = _as_it_is, *, adapted: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by Hugging Face name, adapters added to the weights that they stand on.

    The model itself is left alone: each sum is a new tensor, made when it is asked for.

    Args:
        module: With or without adapters.
        whole: Makes a whole tensor of one that is spread over ranks; called in the same
            order on all of them.
        adapted: False leaves the adapters out.
    """
    layers = adapted_layers(module)
    adapters = {id(p) for layer in layers.values() for p in _adapter_parameters(layer)}
    for name, tensor in distinct_tensors(module).items():
        if id(tensor) in adapters:
            continue
        path, wrapped, leaf = name.rpartition(WRAPPED)
        if not wrapped or path not in layers:
            yield name, whole(tensor.detach())
        elif adapted and leaf == "weight":
            yield f"{path}.weight", whole(tensor.detach()) + _added(layers[path], whole)
        else:
            yield f"{path}.{leaf}", whole(tensor.detach())


def _adapter_parameters(layer: "Adapted") -> list[Tensor]:
    parts = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return [cast("Tensor", part.weight) for part in parts]


def _added(layer: "Adapted", whole: Callable[[Tensor], Tensor]) -> Tensor:
    """What an adapter adds to the weight below it."""
    down, up = (whole(parameter.detach()) for parameter in _adapter_parameters(layer))
    added: Tensor = (up @ down) * layer.scaling[ADAPTER]
    return added.T if layer.fan_in_fan_out else added


@torch.no_grad()
def adapter_tensors(
    module: Module, whole: Callable[[Tensor], Tensor] = _as_it_is, *, scaled: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the adapters alone, by PEFT's names.

    Args:
        module: With or without adapters.
        whole: As in `merged_tensors`.
        scaled: Whether B comes times alpha / rank, so that B(Ax) is what is added.
    """
    for path, layer in adapted_layers(module).items():
        for letter, parameter in zip("AB", _adapter_parameters(layer), strict=True):
            factor = layer.scaling[ADAPTER] if scaled and letter == "B" else 1
            tensor = whole(parameter.detach())
            yield (
                f"base_model.model.{path}.lora_{letter}.weight",
                tensor if factor == 1 else tensor * factor,
            )


def write_adapter(
    module: Module,
    base: Path,
    folder: Path,
    whole: Callable[[Tensor], Tensor] = _as_it_is,
    *,
    writes: bool = True,
) -> None:
    """Write the adapter in PEFT's format, for `peft.PeftModel.from_pretrained`.

    Args:
        module: A language model with adapters.
        base: What it was loaded from; the config names it.
        folder: Made if needed.
        whole: As in `merged_tensors`.
        writes: False takes part in ``whole`` and writes nothing: on all ranks but one.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_tensors(module, whole)}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = copy.copy(cast("dict[str, PeftConfig]", module.peft_config)[ADAPTER])
    settings.base_model_name_or_path = str(base)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


def settings_of(module: Module) -> dict[str, object] | None:
    """What must be the same for a checkpoint of adapters to mean the same; None without any."""
    layer = next(iter(adapted_layers(module).values()), None)
    if layer is None:
        return None
    return {"rank": layer.r[ADAPTER], "alpha": layer.lora_alpha[ADAPTER]}
