"""Options are read against the recipe; files appear whole and checked, or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field

from skyrl_kernel.cli.data import parse_options, parse_words
from skyrl_kernel.data.recipe import write_recipe
from skyrl_kernel.errors import DataError, UsageError
from skyrl_kernel.protocols import DataRecipe


class Options(BaseModel):
    num_rows: int = Field(default=2, ge=1, description="Rows of each file.")
    text: str = "2 * 3"


def write_rows(options: Options, folder: Path, source: Path | None) -> Mapping[str, Path]:
    row = {"prompt": [{"role": "user", "content": options.text}]}
    files = {split: folder / f"{split}.parquet" for split in ("train", "validation")}
    for file in files.values():
        pq.write_table(pa.Table.from_pylist([row] * options.num_rows), file)
    return files


def break_off(options: Options, folder: Path, source: Path | None) -> Mapping[str, Path]:
    (folder / "train.parquet").write_text("half a file")
    raise KeyboardInterrupt


def write_wrong_schema(options: Options, folder: Path, source: Path | None) -> Mapping[str, Path]:
    files = dict(write_rows(options, folder, source))
    pq.write_table(pa.table({"question": ["2 * 3"]}), files["validation"])
    return files


def recipe(write: Any) -> DataRecipe:
    return DataRecipe(options=Options, write=write)


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(
    "words",
    [
        ["--num_digits", "4"],
        ["--num-digits", "4"],
        ["--num_digits=4"],
        ["--num-digits=4"],
        ["--num-digits", "2", "--num_digits=4"],
    ],
)
def test_dashes_underscores_and_equals_signs_mean_the_same(words: list[str]) -> None:
    assert parse_words(words) == {"num_digits": "4"}


def test_a_value_may_hold_dashes_and_equals_signs() -> None:
    assert parse_words(["--seed", "-1", "--text=a=b-c"]) == {"seed": "-1", "text": "a=b-c"}


@pytest.mark.parametrize("words", [["--seed"], ["--seed", "--text", "x"], ["--seed", ""]])
def test_an_option_without_a_value_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--seed has no value; write --seed VALUE"):
        parse_words(words)


@pytest.mark.parametrize("word", ["seed", "-s", "--"])
def test_a_word_that_is_no_option_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"'{word}' is not an option; write skyrl data NAME"):
        parse_words([word])


def test_an_unknown_option_gets_the_nearest_and_all() -> None:
    with pytest.raises(
        UsageError,
        match=r"'x' has no option --num_row\. Did you mean '--num_rows'\? Options: .*--source",
    ):
        parse_options("x", Options, {"num_row": "3"})


def test_a_value_that_does_not_fit_is_shown_with_the_meaning_of_its_option() -> None:
    with pytest.raises(UsageError, match=r"--num_rows=many: .* valid integer.* Rows of each file"):
        parse_options("x", Options, {"num_rows": "many"})


def test_options_of_the_command_are_not_the_recipes() -> None:
    options = parse_options("x", Options, {"num_rows": "3", "output_dir": "o", "source": "s"})
    assert options == Options(num_rows=3)


def test_files_are_counted_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    written = write_recipe(recipe(write_rows), Options(num_rows=3), folder, None)
    assert [(file.path, file.num_rows, file.num_distinct) for file in written] == [
        (folder / "train.parquet", 3, 1),
        (folder / "validation.parquet", 3, 1),
    ]
    assert everything_below(tmp_path) == [
        tmp_path / "a",
        folder,
        folder / "train.parquet",
        folder / "validation.parquet",
    ]


@pytest.mark.parametrize(
    ("write", "error"), [(break_off, KeyboardInterrupt), (write_wrong_schema, DataError)]
)
def test_a_recipe_that_fails_leaves_no_trace(
    tmp_path: Path, write: Any, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write_recipe(recipe(write), Options(), tmp_path / "new", None)
    assert everything_below(tmp_path) == []


def test_a_recipe_that_fails_leaves_the_files_of_before(tmp_path: Path) -> None:
    write_recipe(recipe(write_rows), Options(text="before"), tmp_path, None)
    before = {path: path.read_bytes() for path in everything_below(tmp_path)}
    with pytest.raises(DataError, match=r"row 0 .* no column 'prompt'"):
        write_recipe(recipe(write_wrong_schema), Options(text="after"), tmp_path, None)
    assert {path: path.read_bytes() for path in everything_below(tmp_path)} == before


def test_an_output_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file' cannot be written to: .*--output_dir DIR"):
        write_recipe(recipe(write_rows), Options(), tmp_path / "file", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="not checked as root, who may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written to: Permission denied"):
        write_recipe(recipe(write_rows), Options(), tmp_path / "new", None)
