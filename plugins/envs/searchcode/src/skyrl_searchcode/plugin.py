"""The hooks of ``searchcode``: its config and its env."""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_search.client import shared_retriever
from skyrl_search.plugin import DEADLINE_SHARE
from skyrl_searchcode.config import SearchcodeConfig
from skyrl_searchcode.env import MAX_TURNS, SearchcodeEnv
from skyrl_searchcode.tools import Tools, make_sandbox, make_tools

NAME = "searchcode"


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.searchcode``."""
    return {"environment.searchcode": SearchcodeConfig}


@hookimpl
def check_env(name: str, settings: Settings) -> None:
    """A sandbox can be had here, with the interpreter and the packages that are asked for."""
    if name == NAME:
        _shared_tools(settings)


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> SearchcodeEnv | None:
    """A fresh env for one row; all share the tools."""
    if name != NAME:
        return None
    default = settings[SearchcodeConfig].max_turns or max_turns or MAX_TURNS
    return SearchcodeEnv(extras, _shared_tools(settings), max_turns=default, cap=max_turns)


def _shared_tools(settings: Settings) -> Tools:
    config = settings[SearchcodeConfig].model_dump_json()
    return _make_tools(config, settings[EnvironmentConfig].timeout_s)


@functools.cache
def _make_tools(config: str, call_timeout_s: float) -> Tools:
    """Those of all envs of a run; by the section's text, since a section cannot be a key."""
    section = SearchcodeConfig.model_validate_json(config)
    retriever = shared_retriever(
        section.search_url,
        name=NAME,
        topk=section.topk,
        timeout_s=section.timeout,
        deadline_s=call_timeout_s * DEADLINE_SHARE,
        log_requests=section.log_requests,
    )
    return make_tools(retriever, make_sandbox(section, call_timeout_s))
