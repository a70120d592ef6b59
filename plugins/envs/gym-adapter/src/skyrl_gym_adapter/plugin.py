"""The hooks of ``skyrl-gym``: its config, its envs, and whether they can be had here."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_gym_adapter.config import PREFIX, SkyrlGymConfig
from skyrl_gym_adapter.envs import InProcessEnv, SandboxedEnv
from skyrl_gym_adapter.episode import NoSuchEnv, find
from skyrl_gym_adapter.recipe import Recipe
from skyrl_gym_adapter.workers import GymWorker
from skyrl_kernel.env import Env
from skyrl_kernel.errors import UsageError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.plugins import discover
from skyrl_kernel.protocols import Settings

NAME = "skyrl-gym"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.skyrl_gym``."""
    return {"environment.skyrl_gym": SkyrlGymConfig}


@hookimpl
def check_env(name: str, settings: Settings) -> None:
    """Find the class, where it will run."""
    if name == NAME:
        raise UsageError(
            f"'{NAME}' is the adapter and no env. Name one by environment.env_class=…: module:Class, "
            f"an id that skyrl-gym has registered, or {PREFIX}gsm8k where an env of that name is "
            "installed here as well"
        )
    target = target_of(name)
    if target is None:
        return
    config = settings[SkyrlGymConfig]
    recipe = Recipe.of(target, config)
    if config.is_harmless(target):
        try:
            find(target, recipe.source_here)
        except NoSuchEnv as error:
            raise UsageError(str(error)) from error
        return
    from skyrl_sandbox import WorkerError

    try:
        GymWorker(recipe).close()
    except WorkerError as error:
        raise UsageError(
            f"it cannot be loaded in the sandbox: {error.message.removeprefix('NoSuchEnv: ')}"
        ) from error
    except UsageError as error:
        raise UsageError(
            f"it was not declared harmless, so it runs in the sandbox. {error}. If it runs nothing that "
            f"a model wrote: environment.skyrl_gym.harmless=\"['{target}']\""
        ) from error


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> Env | None:
    """A fresh env for one row."""
    target = target_of(name)
    if target is None:
        return None
    config = settings[SkyrlGymConfig]
    columns = with_max_turns(dict(extras), max_turns)
    kind = InProcessEnv if config.is_harmless(target) else SandboxedEnv
    return kind(Recipe.of(target, config), columns)


def target_of(name: str) -> str | None:
    """The id or ``module:Class`` that an env's name means here; None if it is another plugin's.

    Example:
        >>> target_of("skyrl-gym:gsm8k"), target_of("my_module:Maze"), target_of("skyrl-gym")
        ('gsm8k', 'my_module:Maze', None)
    """
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    is_installed = any(entry.kind == "env" and entry.name == name for entry in discover())
    return None if is_installed else name


def with_max_turns(extras: dict[str, Any], cap: int | None) -> dict[str, Any]:
    """``extras`` with the limit that the class is told: the row's own, capped, or the cap."""
    own = extras.get("max_turns")
    if own is None:
        extras.pop("max_turns", None)
        limit = cap
    else:
        limit = int(own) if cap is None else min(int(own), cap)
    return extras if limit is None else {**extras, "max_turns": limit}
