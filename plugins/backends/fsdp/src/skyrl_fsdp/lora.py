"""Low-rank adapters: few weights are trained, and the model looks from outside as if all were.

A linear layer computes Wx + (alpha / rank) · B(Ax), W frozen, A and B trained. PEFT
puts A and B into the model in place; what differs from training all weights is here:
which tensors a checkpoint keeps, how the model computes without them (that is the
reference), and how it looks with them added to W.

Source:
    Hu et al. 2021, LoRA, arXiv:2106.09685; PEFT's `LoraConfig`.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from skyrl_kernel.config.roles import LoraConfig
from skyrl_kernel.errors import ConfigError
from skyrl_transformers.loading import distinct_tensors

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.lora import Linear

ADAPTER = "default"
"""PEFT's own name for the first adapter of a model; there is no second."""
ADAPTER_FOLDER = "lora_adapter"
"""Folder of the adapter in an export, as in SkyRL's checkpoints."""
_WRAPPED = ".base_layer."


def add_adapters(module: PreTrainedModel, config: LoraConfig, *, key: str, seed: int) -> None:
    """Freeze a model and put new adapters into it, which change nothing yet: B is 0.

    Args:
        module: A language model, or the body of a critic.
        config: ``rank`` is at least 1.
        key: Where ``config`` stands in the tree, for messages.
        seed: Of A's first values; the same on all ranks.

    Raises:
        ConfigError: PEFT is not installed; no layer has the names; or a layer cannot
            have adapters.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"{key}.rank={config.rank} trains adapters, which needs PEFT ({error}); "
            "pip install 'skyrl-fsdp[lora]', or set it to 0 to train all weights"
        ) from error
    linear = sorted({n.rpartition(".")[2] for n, m in module.named_modules() if _is_linear(m)})
    module.requires_grad_(False)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        init_lora_weights=True if config.init_method == "kaiming" else config.init_method,
    )
    try:
        with warnings.catch_warnings(record=True) as caught, _random(key.encode(), seed):
            warnings.simplefilter("always")
            peft.inject_adapter_in_model(settings, module, ADAPTER)
        if idle := [str(one.message) for one in caught if "exclude_modules" in str(one.message)]:
            raise ValueError(idle[0])
    except ValueError as error:
        raise ConfigError(
            f"{key} with target_modules={config.target_modules} and "
            f"exclude_modules={config.exclude_modules} finds nothing to do, or what it cannot do "
            f"({str(error).splitlines()[0]}); linear layers of this model are called "
            f"{', '.join(linear)}"
        ) from error
    _refuse_others(module, key)


def _refuse_others(module: PreTrainedModel, key: str) -> None:
    """Adapters stand on linear layers whose weight no other layer has too."""
    from peft.tuners.lora import Linear

    names = [id(tensor) for tensor in module.state_dict(keep_vars=True).values()]
    for path, layer in adapted_layers(module).items():
        weight = layer.get_base_layer().weight
        if not isinstance(layer, Linear):
            found = f"a {type(layer.get_base_layer()).__name__}"
        elif names.count(id(weight)) > 1:
            found = "a layer that shares its weight with another"
        else:
            continue
        raise ConfigError(
            f"{key}.target_modules asks for an adapter on '{path}', {found}; adapters stand on linear "
            f"layers with a weight of their own: leave it out, or name it in {key}.exclude_modules"
        )


def _is_linear(module: Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def adapted_layers(module: Module) -> dict[str, "Linear"]:
    """Path → PEFT's layer, of those that have an adapter; empty without any."""
    return {
        path: cast("Linear", layer)
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
    if not any(isinstance(layer.lora_dropout[ADAPTER], torch.nn.Dropout) for layer in layers):
        yield
        return
    with _random(b"dropout", *seed):
        yield


@contextlib.contextmanager
def _random(what: bytes, *seed: int) -> Iterator[None]:
    """Torch draws in here from a generator of its own."""
    with torch.random.fork_rng():
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
        path, wrapped, leaf = name.rpartition(_WRAPPED)
        if not wrapped or path not in layers:
            yield name, whole(tensor.detach())
        elif adapted and leaf == "weight":
            yield f"{path}.weight", whole(tensor.detach()) + _added(layers[path], whole)
        else:
            yield f"{path}.{leaf}", whole(tensor.detach())


def _adapter_parameters(layer: "Linear") -> list[Tensor]:
    parts = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return [cast("Tensor", part.weight) for part in parts]


def _added(layer: "Linear", whole: Callable[[Tensor], Tensor]) -> Tensor:
    """What an adapter adds to the weight below it."""
    down, up = (whole(parameter.detach()) for parameter in _adapter_parameters(layer))
    added: Tensor = (up @ down) * layer.scaling[ADAPTER]
    return added.T if layer.fan_in_fan_out else added


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
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": whole(parameter.detach())
        .cpu()
        .contiguous()
        for path, layer in adapted_layers(module).items()
        for letter, parameter in zip("AB", _adapter_parameters(layer), strict=True)
    }
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
