"""Sources of every kind are read alike, and each way to fail says what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.data import read_file, read_source
from skyrl_kernel.errors import DataError

ROWS = [
    {"prompt": [{"role": "user", "content": "2 * 3"}], "reward_spec": {"ground_truth": "6"}},
    {"prompt": [{"role": "user", "content": "4 * 5"}], "reward_spec": {"ground_truth": "20"}},
]


def write_all_formats(folder: Path, rows: list[dict[str, object]]) -> list[Path]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return [folder / f"rows.{suffix}" for suffix in ("parquet", "jsonl", "json")]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    for path in write_all_formats(tmp_path, ROWS):
        assert read_file(path) == ROWS


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_text_survives_a_line_of_json(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    # Text may hold every separator that str.splitlines() knows; only "\n" ends a row.
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    rows = [{"text": text} for text in texts]
    lines = [
        json.dumps(row, ensure_ascii=not text.isprintable())
        for row, text in zip(rows, texts, strict=True)
    ]
    path.write_text("\n\n".join(lines), encoding="utf-8", newline="")
    assert read_file(path) == rows


def test_unescaped_unicode_line_separators_do_not_split_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_file(path) == [{"text": "a\u2028b\u0085c"}]


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert read_file(path) == [{"a": 1}, {"a": 2}]


def test_a_json_file_may_hold_one_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": "mixed types are fine"}\n')
    assert read_file(path) == [{"a": 1}, {"a": "mixed types are fine"}]


def test_the_home_folder_expands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_all_formats(tmp_path, ROWS)
    assert read_source("~/rows.parquet") == ROWS


def test_a_folder_called_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "split=train"
    folder.mkdir()
    assert read_source(str(write_all_formats(folder, ROWS)[0])) == ROWS


def test_a_plugin_gives_the_rows_of_its_name_and_split() -> None:
    asked: list[str] = []

    def resolve(source: str) -> pa.Table:
        asked.append(source)
        return pa.Table.from_pylist(ROWS)

    assert read_source("multiply:train", resolve) == ROWS
    assert asked == ["multiply:train"]


def test_a_missing_file_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    write_all_formats(tmp_path, ROWS)
    with pytest.raises(
        DataError, match=r"train\.parquet' does not exist.*: rows\.json, rows\.jsonl, rows\.parquet"
    ):
        read_source(str(tmp_path / "train.parquet"))


def test_a_missing_folder_points_to_skyrl_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nor does the folder .*'skyrl data' lists"):
        read_source(str(tmp_path / "none" / "train.parquet"))


def test_another_suffix_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt\n")
    with pytest.raises(DataError, match=r"is none of \.parquet, \.jsonl, \.json"):
        read_source(str(tmp_path / "rows.csv"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    with pytest.raises(DataError, match=r"rows\.parquet' is no file"):
        read_source(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_a_damaged_parquet_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as parquet") as caught:
        read_source(str(tmp_path / "rows.parquet"))
    assert "\n" not in str(caught.value)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl', line 3 is not valid JSON"):
        read_source(str(path))


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match="line 1 holds list; a row is an object"):
        read_source(str(path))


def test_an_item_of_a_json_list_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 5]')
    with pytest.raises(DataError, match="row 1 holds int; a row is an object"):
        read_source(str(path))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="cannot be read: 'utf-8' codec"):
        read_source(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_source_without_rows_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text("[]" if suffix == "json" else "\n")
    if suffix == "parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="has no rows"):
        read_source(str(path))


def test_what_can_be_no_name_either_is_explained_as_a_path() -> None:
    with pytest.raises(DataError, match=r"no such file\. Files end with \.parquet"):
        read_source("data/gsm8k/train/parquet")


def test_a_name_that_nobody_offers_says_what_to_select_or_install() -> None:
    # A fresh interpreter without the library, whether or not it is installed here.
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from skyrl_kernel.data import read_source\n"
        "read_source('multiplyy:train', lambda source: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: data 'multiplyy:train': no such file, and no selected plugin" in last
    assert "pip install datasets" in last
    assert "--plugin NAME" in last


def test_a_hub_name_is_read_with_the_datasets_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="not checked: Hugging Face names; pip install datasets")
    # The library takes a folder's name for a data set's; "held:train" itself is no path.
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert read_source("held:train") == ROWS[:1]
    with pytest.raises(DataError, match="hub did not give it"):
        read_source("held:none")
