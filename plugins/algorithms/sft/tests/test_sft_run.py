"""Rows that cannot be learned are found before a run begins, with their file, row and columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.errors import DataError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.prepared import load_data
from skyrl_kernel.testing.scripted import CharTokenizer

CHAT = [{"role": "user", "content": "6 * 7"}, {"role": "assistant", "content": "42"}]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(train: str, *words: str, val: str | None = None) -> Any:
    data = [f"data.train_data={json.dumps([train])}"]
    if val is not None:
        data.append(f"data.val_data={json.dumps([val])}")
    return load_data(make_plan(["sft"], [], [*data, *words]), CharTokenizer())


def test_rows_of_all_kinds_stand_in_one_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        {"messages": CHAT},
        {"prompt": CHAT[:1], "response": "42"},
        {"prompt": "6 * 7", "response": "42"},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    )
    data = load(file, val=file)
    assert [len(data.train), len(data.val)] == [4, 4]
    assert data.train.lengths[0] == data.train.lengths[1] == data.train.lengths[2]
    assert data.train.lengths[3] == 1


@pytest.mark.parametrize("key", ["data.train_data", "data.val_data"])
def test_a_bad_row_is_named_with_its_file_and_its_columns(tmp_path: Path, key: str) -> None:
    good = write(tmp_path / "good.jsonl", {"messages": CHAT})
    bad = write(tmp_path / "bad.jsonl", {"messages": CHAT}, {"text": "6 * 7 = 42"})
    train, val = (bad, good) if key == "data.train_data" else (good, bad)
    told = rf"^{key}: data '.*bad\.jsonl', row 1 \(from 0\): .*'messages'.*the row has: text$"
    with pytest.raises(DataError, match=told):
        load(train, val=val)


def test_rows_with_a_longer_prompt_than_allowed_are_left_out_and_counted(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "6" * 600}, CHAT[1]]
    data = load(write(tmp_path / "rows.jsonl", {"messages": CHAT}, {"messages": long}))
    assert len(data.train) == 1
    assert data.notes == (
        "data.train_data: 1 of 2 prompts are longer than trainer.max_prompt_length=512 tokens and "
        "were dropped",
    )


def test_rows_without_a_prompt_are_still_refused_where_they_are_to_be_played(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "rows.jsonl", {"messages": CHAT})
    words = [f"data.train_data={json.dumps([file])}", "generator.rollout=agent"]
    plan = make_plan(
        ["sft"],
        [],
        [
            *words,
            "generator.inference_engine.backend=transformers",
            "environment.env_class=multiply",
        ],
    )
    with pytest.raises(DataError, match="no column 'prompt'"):
        load_data(plan, CharTokenizer())
