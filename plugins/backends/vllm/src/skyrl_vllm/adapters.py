"""Updates that bring the adapter alone, beside weights that stay: names, checks, settings of vLLM's.

A tensor has PEFT's name: ``base_model.model.``, the layer's path, ``.lora_A.weight`` or
``.lora_B.weight``. A is [rank, in], B is [out, rank] and scaled by alpha / rank.
"""

from collections.abc import Collection, Mapping

from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

NAME = "skyrl-policy"
"""What requests call the model with the adapter."""
SYNC = "adapters"
"""The value of ``generator.inference_engine.weight_sync_backend``."""
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_HEAD, _EMBEDDING = "lm_head", "embed_tokens"
"""Of no adapter: vLLM 0.32 dies when asked for log-probs of a prompt where the head may have one."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM 0.32 can be started for."""


def is_adapter(name: str) -> bool:
    """Whether a tensor of that name is part of an adapter.

    Example:
        >>> is_adapter("base_model.model.lm_head.lora_B.weight"), is_adapter("lm_head.weight")
        (True, False)
    """
    return name.endswith((_DOWN, _UP))


def adapter_flags(
    sync: str, trainer: TrainerConfig, model: Shapes, *, dtype: str, on_gpu: bool
) -> list[str]:
    """What the command line of a server has that is to get an adapter; empty with another ``sync``.

    Args:
        sync: ``generator.inference_engine.weight_sync_backend``.
        trainer: ``trainer``.
        model: Of the tensors that the server has.
        dtype: Of its weights.
        on_gpu: Whether it computes there.

    Raises:
        ConfigError: The adapter is not one that vLLM can compute with.
    """
    if sync != SYNC:
        return []
    lora = trainer.policy.model.lora
    if on_gpu and dtype == "float32":  # vllm/lora/ops/triton_ops refuses it once a request comes
        raise _refusal(f"rank={lora.rank}: vLLM computes no adapter in float32 on a GPU")
    able = [one for one in _RANKS if one >= lora.rank]
    if not able:
        raise _refusal(f"rank={lora.rank}: vLLM serves adapters up to rank {_RANKS[-1]}")
    if _HEAD in lora.target_modules and isinstance(lora.target_modules, list):
        raise _refusal(f"target_modules names {_HEAD}, on which vLLM takes no adapter here")
    layers = {
        name.removesuffix(".weight").rpartition(".")[2] for name in model if len(model[name]) == 2
    }
    flags = ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(able[0])]
    return [*flags, "--lora-target-modules", *sorted(layers - {_HEAD, _EMBEDDING})]


def _refusal(what: str) -> ConfigError:
    return ConfigError(
        f"trainer.policy.model.lora.{what}; change it, or send whole weights, the adapter added, with "
        "generator.inference_engine.weight_sync_backend=safetensors"
    )


def adapter_variables(sync: str) -> dict[str, str]:
    """The environment likewise: a server that was started without an adapter may get one."""
    return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if sync == SYNC else {}


def problem(name: str, shape: tuple[int, ...], model: Shapes) -> str | None:
    """What is wrong with one tensor of an adapter on a model of these shapes.

    Example:
        >>> model = {"head.weight": (256, 64)}
        >>> problem("base_model.model.head.lora_A.weight", (8, 64), model)
        >>> problem("base_model.model.head.lora_B.weight", (8, 64), model)
        "has shape (8, 64), and the layer's weight (256, 64)"
    """
    layer, side = _layer(name), 0 if name.endswith(_UP) else 1
    if not is_adapter(name) or not name.startswith(_PREFIX):
        return "is not an adapter's, and this engine keeps its other weights"
    weight = model.get(f"{layer}.weight")
    if weight is None:
        return f"is on the layer '{layer}', which the engine's model does not have"
    if len(shape) != 2 or len(weight) != 2 or shape[side] != weight[side]:
        return f"has shape {shape}, and the layer's weight {weight}"
    return None


def missing(names: Collection[str], before: Collection[str]) -> list[str]:
    """The tensors that an adapter lacks: the other half of one that came, and what came ``before``."""
    halves = {f"{_PREFIX}{_layer(name)}{half}" for name in names for half in (_DOWN, _UP)}
    return sorted(halves.union(before).difference(names))


def _layer(name: str) -> str:
    return name.removeprefix(_PREFIX).removesuffix(_DOWN).removesuffix(_UP)
