"""What can be set about other people's environments: ``environment.skyrl_gym``."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from skyrl_kernel.config import Section

PREFIX = "skyrl-gym:"
"""``skyrl-gym:gsm8k`` is skyrl-gym's, whatever else has that name."""
OWN_HARMLESS = frozenset({"gsm8k", "gsm8k_multi_turn", "aime", "search"})
"""Ids of skyrl-gym whose classes run nothing that a model wrote."""

_OWN_CONFIG: Mapping[str, Mapping[str, Any]] = {
    "search": {
        "log_requests": False,
        "search_url": "http://127.0.0.1:8000/retrieve",
        "topk": 3,
        "timeout": 30,
    },
    "text2sql": {"db_path": "/home/ray/default/sql_data"},
    "llm_as_a_judge": {"model": "gpt-4o-mini", "base_url": None},
}
"""Id → what SkyRL hands to the class where nothing was set."""


class SkyrlGymConfig(Section):
    """``environment.skyrl_gym``: which classes, what they get, and where they run."""

    ids: dict[str, str] = Field(default_factory=dict)
    """Id → ``module:Class``: what a script of SkyRL's does with `skyrl_gym.register`."""
    modules: list[str] = Field(default_factory=list)
    """Imported first, because they register ids of their own."""
    harmless: list[str] = Field(default_factory=list)
    """Envs, named as rows name them, that run nothing that a model wrote: they need no sandbox."""
    env_config: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Env → what its class gets as ``env_config`` (SkyRL: environment.skyrl_gym.<id>)."""
    folders: list[str] = Field(default_factory=list)
    """Folders that are searched for modules and that a class in the sandbox may read."""
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(default_factory=list)
    """Ports of this machine's 127.0.0.1 that a class in the sandbox, which has no network, may reach."""
    memory_mb: Annotated[int, Field(ge=256)] = 2048
    """MiB that one env in the sandbox may use, with all that it starts."""
    processes: Annotated[int, Field(ge=8)] = 64
    """Processes and threads that it may have."""

    @field_validator("ids")
    @classmethod
    def _entries_are_classes(cls, entries: dict[str, str]) -> dict[str, str]:
        for name, entry in entries.items():
            if entry.count(":") != 1:
                raise ValueError(
                    f"environment.skyrl_gym.ids.{name}={entry} is no class; "
                    "write module:Class, such as my_envs.maze:MazeEnv"
                )
        return entries

    def is_harmless(self, name: str) -> bool:
        """True if the env may run outside the sandbox.

        Example:
            >>> config = SkyrlGymConfig(harmless=["my_module:Maze"])
            >>> config.is_harmless("my_module:Maze"), config.is_harmless("lcb")
            (True, False)
        """
        own = name in OWN_HARMLESS and name not in self.ids
        return own or name in {one.removeprefix(PREFIX) for one in self.harmless}

    def env_config_of(self, name: str) -> dict[str, Any]:
        """What the class of that env gets.

        Example:
            >>> SkyrlGymConfig(env_config={"search": {"topk": 5}}).env_config_of("search")["topk"]
            5
        """
        return {**_OWN_CONFIG.get(name, {}), **self.env_config.get(name, {})}
