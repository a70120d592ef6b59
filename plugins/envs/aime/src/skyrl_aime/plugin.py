"""The hook of ``aime``: its env."""

from collections.abc import Mapping
from typing import Any

from skyrl_aime.env import AimeEnv
from skyrl_kernel.hookspecs import hookimpl

NAME = "aime"


@hookimpl
def make_env(name: str, extras: Mapping[str, Any]) -> AimeEnv | None:
    """A fresh env for one row; its single turn needs no cap."""
    return AimeEnv(extras) if name == NAME else None
