"""The hooks of ``text2sql``: its config and its env."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_text2sql.config import Text2SqlConfig
from skyrl_text2sql.env import Text2SqlEnv, queries

NAME = "text2sql"

_DEADLINE_SHARE = 0.9
"""Of ``environment.timeout_s``: what a query may take, so that too slow is wrong and not lost."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.text2sql``."""
    return {"environment.text2sql": Text2SqlConfig}


@hookimpl
def check_env(name: str, settings: Settings) -> None:
    """The databases are there, and a sandbox to ask them in."""
    if name == NAME:
        queries(settings[Text2SqlConfig].db_path)


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> Text2SqlEnv | None:
    """A fresh env for one row."""
    if name != NAME:
        return None
    call_timeout_s = _DEADLINE_SHARE * settings[EnvironmentConfig].timeout_s
    return Text2SqlEnv(extras, settings[Text2SqlConfig], max_turns, call_timeout_s)
