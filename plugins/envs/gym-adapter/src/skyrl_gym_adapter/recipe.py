"""All that it takes to make envs of one name, wherever they run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_gym_adapter.config import SkyrlGymConfig
from skyrl_gym_adapter.episode import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A class and its settings.

    Example:
        >>> Recipe.of("search", SkyrlGymConfig()).env_config["topk"]
        3
    """

    name: str
    """A registered id, or ``module:Class``."""
    source: Source
    """Where its class is."""
    env_config: Mapping[str, Any]
    """What the class gets beside the row."""
    ports: tuple[int, ...]
    """Let into the sandbox."""
    memory_mb: int
    """Of one env in the sandbox."""
    processes: int
    """Likewise."""

    @classmethod
    def of(cls, name: str, config: SkyrlGymConfig) -> "Recipe":
        """What ``environment.skyrl_gym`` makes of a name."""
        return cls(
            name=name,
            source=Source(
                folders=[str(Path(one).expanduser().absolute()) for one in config.folders],
                modules=list(config.modules),
                ids=dict(config.ids),
            ),
            env_config=config.env_config_of(name),
            ports=tuple(config.ports),
            memory_mb=config.memory_mb,
            processes=config.processes,
        )

    @property
    def source_here(self) -> Source:
        """With the current folder, where ``python -m`` would also find a module."""
        return {**self.source, "folders": [*self.source["folders"], os.getcwd()]}

    @property
    def modules(self) -> list[str]:
        """Every module that is asked for by name."""
        entries = [self.name, *self.source["ids"].values()]
        named = [entry.partition(":")[0] for entry in entries if ":" in entry]
        return list(dict.fromkeys([*self.source["modules"], *named]))
