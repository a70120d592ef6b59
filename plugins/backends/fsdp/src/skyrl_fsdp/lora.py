"""Puts low-rank adapters into a model through PEFT, and draws the first of them.

A linear layer computes Wx + (alpha / rank) · B(Ax) then, W frozen, A and B trained.
PEFT changes the model in place, so all else calls it as before; what differs from
training all weights is in `skyrl_fsdp.adapted`.

Source:
    Hu et al. 2021, LoRA, arXiv:2106.09685; PEFT's `LoraConfig`.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Linear
from transformers import PreTrainedModel

from skyrl_fsdp.adapted import ADAPTER, WRAPPED, adapted_layers, random_numbers
from skyrl_fsdp.critic import Critic
from skyrl_kernel.config.roles import LoraConfig
from skyrl_kernel.errors import ConfigError

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as Adapted


def add_adapters(
    module: PreTrainedModel | Critic, config: LoraConfig, *, key: str, seed: int
) -> None:
    """Freeze a model and put new adapters into it, which change nothing yet.

    Args:
        module: On the device ``meta`` its adapters are there too, and `FirstTensors` has
            their values. The head of a critic stays as it is, and is trained whole.
        config: ``rank`` is at least 1.
        key: Where ``config`` stands in the tree.
        seed: Of the first adapters.

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
    body = module.body if isinstance(module, Critic) else module
    linear = {n.rpartition(".")[2] for n, m in body.named_modules() if isinstance(m, Linear)}
    body.requires_grad_(False)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
    )
    try:
        with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng([]):
            warnings.simplefilter("always")
            peft.inject_adapter_in_model(settings, body, ADAPTER)
        if idle := [str(one.message) for one in caught if "exclude_modules" in str(one.message)]:
            raise ValueError(idle[0])
    except ValueError as error:
        raise ConfigError(
            f"{key} with target_modules={config.target_modules} and "
            f"exclude_modules={config.exclude_modules} finds nothing to do, or what it cannot do "
            f"({str(error).splitlines()[0]}); linear layers of this model are called "
            f"{', '.join(sorted(linear))}"
        ) from error
    _refuse_others(body, key)
    first = FirstTensors(module, {}, config, key=key, seed=seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in first and not parameter.is_meta:
                parameter.copy_(first[name])


class FirstTensors(Mapping[str, Tensor]):
    """What a model with new adapters begins with, by its own names for its tensors.

    An adapter is drawn when it is asked for, from the seed and its layer's path: on
    all ranks the same, whatever was drawn before.

    Args:
        module: Has its adapters already.
        stored: The model's tensors by Hugging Face name.
        config: How adapters are drawn.
        key: Where that stands in the tree; policy and critic draw differently.
        seed: ``trainer.seed``.
    """

    def __init__(
        self,
        module: PreTrainedModel | Critic,
        stored: Mapping[str, Tensor],
        config: LoraConfig,
        *,
        key: str,
        seed: int,
    ) -> None:
        self._layers = adapted_layers(module)
        self._stored = stored
        self._config = config
        self._seed = key.encode(), seed
        self._names = {
            f"{p}.lora_{part}.{ADAPTER}.weight": p for p in self._layers for part in "AB"
        }
        self._names |= {_wrapped(name, self._layers): "" for name in stored}

    def __getitem__(self, name: str) -> Tensor:
        path = self._names[name]
        if not path:
            return self._stored[name.replace(WRAPPED, ".")]
        key, seed = self._seed
        with random_numbers(key + path.encode(), seed):
            down, up = _drawn(self._layers[path], self._config)
        return down if ".lora_A." in name else up

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _wrapped(name: str, layers: Mapping[str, object]) -> str:
    """A Hugging Face name as the model with adapters has it."""
    path, _, leaf = name.rpartition(".")
    return f"{path}{WRAPPED}{leaf}" if path in layers else name


def _drawn(layer: "Adapted", config: LoraConfig) -> tuple[Tensor, Tensor]:
    """[rank, in] A and [out, rank] B, as PEFT draws them: BA is 0."""
    rank, inputs, outputs = config.rank, layer.in_features or 0, layer.out_features or 0
    if config.init_method == "orthogonal":
        basis, _ = torch.linalg.qr(torch.randn(rank, rank))
        down = (torch.randn(inputs, rank // 2) @ basis[0::2]).T / 10.0
        return down, torch.randn(rank // 2, outputs).T @ basis[1::2] / 10.0
    down = torch.empty(rank, inputs)
    if config.init_method == "gaussian":
        torch.nn.init.normal_(down, std=1 / rank)
    else:
        torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return down, torch.zeros(outputs, rank)


def _refuse_others(module: PreTrainedModel, key: str) -> None:
    """Adapters stand on linear layers whose weight no other layer has too."""
    from peft.tuners.lora import Linear as Adapted

    names = [id(tensor) for tensor in module.state_dict(keep_vars=True).values()]
    for path, layer in adapted_layers(module).items():
        weight = layer.get_base_layer().weight
        if not isinstance(layer, Adapted):
            found = f"a {type(layer.get_base_layer()).__name__}"
        elif names.count(id(weight)) > 1:
            found = "a layer that shares its weight with another"
        else:
            continue
        raise ConfigError(
            f"{key}.target_modules asks for an adapter on '{path}', {found}; adapters stand on linear "
            f"layers with a weight of their own: leave it out, or name it in {key}.exclude_modules"
        )
