"""The hooks of ``lcb``: its config and its env."""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_lcb.config import LcbConfig
from skyrl_lcb.env import LcbEnv, make_sandbox
from skyrl_sandbox import Sandbox

NAME = "lcb"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.lcb``."""
    return {"environment.lcb": LcbConfig}


@hookimpl
def check_env(name: str, settings: Settings) -> None:
    """A sandbox can be had here, with the interpreter and the packages that are asked for."""
    if name == NAME:
        _sandbox(settings[LcbConfig].model_dump_json())


@hookimpl
def make_env(name: str, settings: Settings, extras: Mapping[str, Any]) -> LcbEnv | None:
    """A fresh env for one row."""
    if name != NAME:
        return None
    config = settings[LcbConfig]
    sandbox = _sandbox(config.model_dump_json())
    return LcbEnv(extras, sandbox, config, settings[EnvironmentConfig].timeout_s)


@functools.cache
def _sandbox(config: str) -> Sandbox:
    """One for all envs of a run; by its text, since a section cannot be a key."""
    return make_sandbox(LcbConfig.model_validate_json(config))
