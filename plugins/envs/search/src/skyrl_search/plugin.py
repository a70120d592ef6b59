"""The hooks of ``search``: its config and its env."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_search.client import shared_retriever
from skyrl_search.config import SearchConfig
from skyrl_search.env import MAX_TURNS, SearchEnv

NAME = "search"

DEADLINE_SHARE = 0.9
"""Of ``environment.timeout_s``: what a search may take, so that its own error comes first."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.search``."""
    return {"environment.search": SearchConfig}


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> SearchEnv | None:
    """A fresh env for one row; all share the connections to the retriever."""
    if name != NAME:
        return None
    config = settings[SearchConfig]
    retriever = shared_retriever(
        config.search_url,
        topk=config.topk,
        timeout_s=config.timeout,
        deadline_s=settings[EnvironmentConfig].timeout_s * DEADLINE_SHARE,
        log_requests=config.log_requests,
    )
    return SearchEnv(
        extras, retriever, max_turns=config.max_turns or max_turns or MAX_TURNS, cap=max_turns
    )
