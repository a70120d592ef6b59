import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.json_lines import append_lines, dump_each, dump_line, number, read_lines

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc/_"), inner),
    max_leaves=8,
)  # fmt: skip


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abc/_"), JSON_VALUES))
def test_what_json_knows_comes_back_as_it_was(record):
    line = dump_line(record)
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert json.loads(line, parse_constant=refuse_constant) == record


@settings(max_examples=50, deadline=None)
@given(st.floats())
def test_every_float_is_valid_json_and_comes_back(value):
    back = number(json.loads(dump_line({"x": value}), parse_constant=refuse_constant)["x"])
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_numpy_numbers_paths_sets_and_lone_surrogates_are_written():
    record = {"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y"), "d": {2, 1}, "e": "\ud800"}
    assert dump_line(record) == '{"a": 0.5, "b": [0, 1], "c": "x/y", "d": [1, 2], "e": "?"}\n'


def test_a_torn_last_line_is_not_read(tmp_path):
    path = tmp_path / "m.jsonl"
    append_lines(path, [{"step": 1}, {"step": 2}])
    with path.open("ab") as file:
        file.write(b'{"step": 3, "re')
    assert [record["step"] for _, record in read_lines(path)] == [1, 2]


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "m.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        append_lines(path, [{"step": 1}])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{}],
        [{"a": 1}, {}, {"a": [{"b": None}]}],
        [["a", "\0", "b"], {"text": ', "\0", '}],
        [{"loss": float("nan")}, {"path": Path("x")}],
        [{"text": "é"}, {"text": "\ud800"}],
    ],
    ids=["none", "empty", "plain", "the text between them", "odd values", "beyond ascii"],
)
def test_records_dumped_together_are_those_dumped_one_by_one(records: list[Any]) -> None:
    assert dump_each(records) == [dump_line(record).rstrip("\n") for record in records]
