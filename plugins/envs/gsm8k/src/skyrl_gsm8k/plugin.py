"""The hooks of ``gsm8k`` and ``gsm8k_multi_turn``: their data and their envs."""

from collections.abc import Mapping
from typing import Any

from skyrl_gsm8k.env import Gsm8kEnv
from skyrl_gsm8k.multi_turn import Gsm8kMultiTurnEnv
from skyrl_gsm8k.problems import Gsm8kOptions, MultiTurnOptions, write_data
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import DataRecipe

NAME = "gsm8k"
MULTI_TURN = "gsm8k_multi_turn"


@hookimpl
def data_recipe(name: str) -> DataRecipe | None:
    """``skyrl data gsm8k`` and ``… gsm8k_multi_turn``: train.parquet and validation.parquet."""
    options = {NAME: Gsm8kOptions, MULTI_TURN: MultiTurnOptions}.get(name)
    return DataRecipe(options=options, write=write_data) if options else None


@hookimpl
def make_env(
    name: str, extras: Mapping[str, Any], max_turns: int | None
) -> Gsm8kEnv | Gsm8kMultiTurnEnv | None:
    """A fresh env for one row; the single turn of ``gsm8k`` needs no cap."""
    if name == NAME:
        return Gsm8kEnv(extras)
    return Gsm8kMultiTurnEnv(extras, cap=max_turns) if name == MULTI_TURN else None
