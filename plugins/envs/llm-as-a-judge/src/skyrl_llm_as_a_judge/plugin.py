"""The hooks of ``llm_as_a_judge``: its config and its env."""

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import EnvironmentConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings
from skyrl_llm_as_a_judge.client import OPENAI_URL, shared_judge
from skyrl_llm_as_a_judge.config import JudgeConfig
from skyrl_llm_as_a_judge.env import JudgeEnv

NAME = "llm_as_a_judge"

_DEADLINE_SHARE = 0.9
"""Of ``environment.timeout_s``: what a judge may take, so that its own error comes first."""


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.llm_as_a_judge``."""
    return {"environment.llm_as_a_judge": JudgeConfig}


@hookimpl
def make_env(name: str, settings: Settings, extras: Mapping[str, Any]) -> JudgeEnv | None:
    """A fresh env for one row; all share the connections to the judge. One turn needs no cap."""
    if name != NAME:
        return None
    config = settings[JudgeConfig]
    base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    judge = shared_judge(
        base_url.rstrip("/"),
        config.model,
        json.dumps(config.additional_kwargs),
        key_variable=config.key_variable,
        timeout_s=config.timeout,
        deadline_s=settings[EnvironmentConfig].timeout_s * _DEADLINE_SHARE,
    )
    return JudgeEnv(extras, judge, prompt=config.prompt)
