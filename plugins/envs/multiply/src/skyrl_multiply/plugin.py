"""The hooks of ``multiply``: its config, its data and its env."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import BaseModel

from skyrl_kernel.errors import UsageError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import DataRecipe, Settings
from skyrl_multiply.config import MultiplyConfig, ProblemOptions
from skyrl_multiply.env import MultiplyEnv
from skyrl_multiply.problems import SPLITS, make_table

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "multiply"

log = structlog.get_logger()


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``environment.multiply``."""
    return {"environment.multiply": MultiplyConfig}


@hookimpl
def data_recipe(name: str) -> DataRecipe | None:
    """``skyrl data multiply``: train.parquet and validation.parquet."""
    return DataRecipe(options=ProblemOptions, write=write_data) if name == NAME else None


@hookimpl
def load_dataset(source: str, settings: Settings) -> "pa.Table | None":
    """``multiply:train`` and ``multiply:validation``, as ``environment.multiply`` says."""
    name, _, split = source.partition(":")
    if name != NAME:
        return None
    table = make_table(settings[MultiplyConfig], split)
    num_distinct = len({messages[-1]["content"] for messages in table["prompt"].to_pylist()})
    if num_distinct < table.num_rows:
        log.info("multiplication problems repeat", rows=table.num_rows, distinct=num_distinct)
    return table


@hookimpl
def make_env(
    name: str, settings: Settings, extras: Mapping[str, Any], max_turns: int | None
) -> MultiplyEnv | None:
    """A fresh env for one row."""
    if name != NAME:
        return None
    config = settings[MultiplyConfig]
    return MultiplyEnv(
        extras,
        max_turns=config.max_turns,
        cap=max_turns,
        wrong_box_reward=config.wrong_box_reward,
    )


def write_data(options: ProblemOptions, folder: Path, source: Path | None) -> Mapping[str, Path]:
    """Write one parquet file per split into ``folder``.

    Raises:
        UsageError: A ``source`` was given, or ``test_size`` is too large.
    """
    import pyarrow.parquet as pq

    if source is not None:
        raise UsageError(
            f"data 'multiply' is made from a seed and reads nothing; leave out --source {source}"
        )
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    for split, file in files.items():
        pq.write_table(make_table(options, split), file)
    return files
