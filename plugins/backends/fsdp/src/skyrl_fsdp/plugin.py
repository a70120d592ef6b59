"""Hooks of the plugin `fsdp`: the trainer that ``trainer.strategy=fsdp`` names."""

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel

from skyrl_fsdp.config import FsdpConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings, Trainer

NAME = "fsdp"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``trainer.fsdp``."""
    return {"trainer.fsdp": FsdpConfig}


@hookimpl
def make_trainer(
    name: str,
    settings: Settings,
    models: Mapping[str, Path],
    total_updates: int,
    elsewhere: Collection[str],
) -> Trainer | None:
    """A trainer in this process, its models loaded; one rank of several where the environment says so."""
    if name != NAME:
        return None
    import torch

    from skyrl_fsdp.trainer import FsdpTrainer

    config = settings[FsdpConfig]
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    trainer = FsdpTrainer(
        models,
        settings[TrainerConfig],
        device=config.device,
        timeout_s=config.timeout_s,
        elsewhere=elsewhere,
    )
    trainer.set_total_updates(total_updates)
    return trainer
