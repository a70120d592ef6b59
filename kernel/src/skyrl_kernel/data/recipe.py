"""Runs a plugin's `DataRecipe` so that its files appear whole and checked, or not at all."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_kernel.data.dataset import Dataset, load_prompts
from skyrl_kernel.errors import UsageError, is_disk_full
from skyrl_kernel.protocols import DataRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """One file of a data set, in its place."""

    path: Path
    num_rows: int
    num_distinct: int
    """Distinct prompts among the rows."""


def write_recipe(
    recipe: DataRecipe, options: Any, output_dir: Path, source: Path | None
) -> list[WrittenFile]:
    """Make a data set: written aside, every row checked, then moved into ``output_dir``.

    Args:
        recipe: Whose ``write`` gets a temporary folder.
        options: An instance of ``recipe.options``.
        output_dir: Made if missing; files of the same names in it are replaced.
        source: Folder with the original files, or None.

    Raises:
        UsageError: ``output_dir`` cannot be written to.
        DataError: The recipe cannot read its source, or wrote rows of the wrong schema.
    """
    staging = _make_staging(output_dir)
    try:
        files = list(recipe.write(options, staging, source).values())
        checked = [load_prompts([str(file)], default_env="") for file in files]
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            for file in files:
                os.replace(file, output_dir / file.name)
        except OSError as error:
            raise _unwritable(output_dir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [
        WrittenFile(
            path=output_dir / file.name,
            num_rows=len(dataset),
            num_distinct=_count_distinct(dataset),
        )
        for file, dataset in zip(files, checked, strict=True)
    ]


def _make_staging(output_dir: Path) -> Path:
    """A temporary folder on the same file system, so that moving is renaming."""
    target = output_dir.absolute()
    ancestor = next(folder for folder in (target, *target.parents) if folder.exists())
    try:
        return Path(tempfile.mkdtemp(prefix=".skyrl-data-", dir=ancestor))
    except OSError as error:
        raise _unwritable(output_dir, error) from error


def _unwritable(output_dir: Path, error: OSError) -> Exception:
    if is_disk_full(error):
        return error
    return UsageError(
        f"output_dir '{output_dir}' cannot be written to: {error.strerror}; "
        "name another: --output_dir DIR"
    )


def _count_distinct(dataset: Dataset) -> int:
    return len({json.dumps(prompt.messages) for prompt in dataset})
