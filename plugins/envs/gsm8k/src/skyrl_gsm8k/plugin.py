"""The hooks of ``gsm8k``: its data and its env."""

from collections.abc import Mapping
from typing import Any

from skyrl_gsm8k.env import Gsm8kEnv
from skyrl_gsm8k.problems import Gsm8kOptions, write_data
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import DataRecipe

NAME = "gsm8k"


@hookimpl
def data_recipe(name: str) -> DataRecipe | None:
    """``skyrl data gsm8k``: train.parquet and validation.parquet."""
    return DataRecipe(options=Gsm8kOptions, write=write_data) if name == NAME else None


@hookimpl
def make_env(name: str, extras: Mapping[str, Any]) -> Gsm8kEnv | None:
    """A fresh env for one row; its single turn needs no cap."""
    return Gsm8kEnv(extras) if name == NAME else None
