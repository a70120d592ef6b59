"""Models by role as a run begins with them: read, what is trained chosen, spread over the ranks."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_fsdp.critic import Critic, load_critic, stored_head
from skyrl_fsdp.lora import FirstTensors, add_adapters
from skyrl_fsdp.ranks import Ranks
from skyrl_fsdp.sharding import shard
from skyrl_kernel.config.roles import LoraConfig, OptimizerConfig
from skyrl_kernel.config.sharding import ShardingConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.logs import get_logger
from skyrl_transformers.loading import load_causal_lm
from skyrl_transformers.stored import StoredTensors, empty_body, empty_causal_lm, fills

POLICY, VALUE = "policy", "value"
"""The roles that are trained."""

log = get_logger(__name__)

Model: TypeAlias = PreTrainedModel | Critic


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleSettings:
    """What the config says of one role."""

    key: str
    """Where it stands in the tree."""
    sharding: ShardingConfig
    sequence: int
    """Ranks that each compute a part of every row."""
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig | None = None
    """None: it is frozen."""


def settings_of_role(role: str, config: TrainerConfig) -> RoleSettings:
    """Of policy and critic their own, of every frozen role those of the reference."""
    if role not in (POLICY, VALUE):
        return RoleSettings(
            key="trainer.ref",
            sharding=config.ref.fsdp_config,
            sequence=config.ref.sequence_parallel_size,
        )
    of_role = config.policy if role == POLICY else config.critic
    return RoleSettings(
        key="trainer.policy" if role == POLICY else "trainer.critic",
        sharding=of_role.fsdp_config,
        sequence=of_role.sequence_parallel_size,
        lora=of_role.model.lora if of_role.model.lora.rank else None,
        optimizer=of_role.optimizer_config,
    )


def load_model(role: str, path: Path, config: TrainerConfig, ranks: Ranks) -> Model:
    """A role's model, its parameters marked as trained or not.

    Args:
        role: ``value`` is a critic.
        path: Hugging Face directory or name.
        config: ``trainer``.
        ranks: Each keeps a part of every weight.

    Raises:
        ModelError: The directory holds no such model.
        ConfigError: Its settings contradict each other, or what was found.
    """
    settings = settings_of_role(role, config)
    head = config.algorithm.value_head_prefix
    model: Model | None = None
    tensors: Mapping[str, Tensor] | None = None
    sharded = ranks.world > 1 or settings.sharding.cpu_offload
    if sharded:
        model, tensors = _empty(role, path, head)
    if model is None:
        model = (
            load_critic(path, ranks.device, head)
            if role == VALUE
            else load_causal_lm(path, ranks.device)
        )
        if sharded and ranks.rank == 0:  # all do the same
            log.warning(
                "every rank reads a whole model before it keeps its part of it",
                role=role,
                model=str(path),
                why="its files do not have all its tensors by the names and in the shapes of its modules",
            )
    _choose_trained(model, settings, config.seed)
    if settings.lora is not None and tensors is not None:
        key = f"{settings.key}.model.lora"
        tensors = FirstTensors(model, tensors, settings.lora, key=key, seed=config.seed)
    if sharded:
        shard(
            model,
            ranks.mesh(settings.sharding.fsdp_size),
            settings.sharding,
            bf16=config.bf16,
            device=ranks.device,
            tensors=tensors,
        )
    return model


def _choose_trained(model: Model, settings: RoleSettings, seed: int) -> None:
    """All weights, or new adapters and a critic's head, or nothing."""
    model.requires_grad_(settings.optimizer is not None)
    if settings.lora is not None:
        add_adapters(model, settings.lora, key=f"{settings.key}.model.lora", seed=seed)


def _empty(role: str, path: Path, head_name: str) -> tuple[Model | None, Mapping[str, Tensor]]:
    """A model without weights and what fills it; None if its files do not, as they are."""
    try:
        stored = StoredTensors(path)
        shapes = stored.shapes()
        model: Model = (
            Critic(empty_body(path), head_name) if role == VALUE else empty_causal_lm(path)
        )
    except (OSError, ValueError, KeyError):  # `load_causal_lm` says what is wrong with it
        return None, {}
    if not isinstance(model, Critic):
        return (model if fills(model, shapes) else None), stored
    name, head = model.head
    name = f"{name}.weight"
    weight = stored_head(path, head_name, tuple(head.weight.shape))
    if weight is None:
        weight = torch.zeros(head.weight.shape)
    if not fills(model, {**shapes, name: tuple(weight.shape)}):
        return None, {}
    return model, ChainMap({name: weight}, stored)  # type: ignore[arg-type]
