"""Several sources make one data set with stable identities; long prompts are dropped once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from skyrl_kernel.data import Dataset, filter_long, load_prompts
from skyrl_kernel.errors import DataError
from skyrl_kernel.records import IntArray, Message


class WordTokenizer:
    """One token per word of every message, and two for the header of the completion."""

    eos_token_ids = frozenset({0})

    def __init__(self) -> None:
        self.num_calls = 0

    def encode(self, text: str) -> IntArray:
        return np.ones(len(text.split()), dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        self.num_calls += 1
        words = sum(len(message["content"].split()) for message in messages)
        return np.ones(words + 2 * add_generation_prompt, dtype=np.int32)

    def decode(self, tokens: IntArray) -> str:
        return " ".join("x" for _ in tokens)


def write(path: Path, texts: Sequence[str], env: str | None = None) -> str:
    rows = [{"prompt": [{"role": "user", "content": text}], "env_class": env} for text in texts]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def texts(dataset: Dataset) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in dataset]


def test_sources_are_joined_in_order_and_uids_do_not_clash(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "train.jsonl", ["one", "two"])
    second = write(tmp_path / "b" / "train.jsonl", ["three"])
    dataset = load_prompts([first, second, first], default_env="multiply")
    assert texts(dataset) == ["one", "two", "three", "one", "two"]
    assert [prompt.uid for prompt in dataset] == ["0:0", "0:1", "1:0", "2:0", "2:1"]
    assert dataset.origin(dataset[2]) == f"'{second}', row 0 (from 0)"


def test_no_source_is_an_empty_data_set() -> None:
    assert len(load_prompts([], default_env="multiply")) == 0


def test_each_env_is_listed_with_its_first_row(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", ["one", "two"])
    second = write(tmp_path / "b.jsonl", ["three", "four"], env="gsm8k")
    assert load_prompts([first, second], default_env="multiply").env_classes() == {
        "multiply": f"'{first}', row 0 (from 0)",
        "gsm8k": f"'{second}', row 0 (from 0)",
    }


def test_a_bad_row_of_the_second_source_is_named_with_its_source(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", ["one"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": [{"role": "user", "content": "x"}]}\n{"prompt": "x"}')
    with pytest.raises(DataError, match=r"bad\.jsonl', row 1 \(from 0\), column 'prompt'"):
        load_prompts([good, str(bad)], default_env="multiply")


def test_the_fingerprint_follows_content_and_order(tmp_path: Path) -> None:
    def fingerprint(words: list[str], env: str = "multiply") -> str:
        source = write(tmp_path / "train.jsonl", words)
        return load_prompts([source], default_env=env).fingerprint()

    base = fingerprint(["one", "two"])
    assert base == fingerprint(["one", "two"])
    others = {fingerprint(["two", "one"]), fingerprint(["one"]), fingerprint(["one", "two"], "x")}
    assert len(others - {base}) == 3


def test_long_prompts_are_dropped_and_counted_and_the_rest_keep_uid_and_order(
    tmp_path: Path,
) -> None:
    source = write(tmp_path / "train.jsonl", ["a b", "a b c d", "a", "a b c"])
    kept, num_dropped = filter_long(load_prompts([source], default_env="e"), WordTokenizer(), 4)
    # Words + 2 for the header: 4, 6, 3, 5; at most 4 stay.
    assert [prompt.uid for prompt in kept] == ["0:0", "0:2"]
    assert kept.lengths == (4, 3)
    assert num_dropped == 2


def test_equal_prompts_are_tokenised_once(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", ["a b", "a c", "a b", "a b"])
    tokenizer = WordTokenizer()
    kept, _ = filter_long(load_prompts([source], default_env="e"), tokenizer, 10)
    assert (len(kept), tokenizer.num_calls) == (4, 2)


def test_prompts_that_differ_in_role_only_are_measured_apart(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": [{"role": role, "content": "a"}]} for role in ("user", "system")]
    path.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = WordTokenizer()
    filter_long(load_prompts([str(path)], default_env="e"), tokenizer, 10)
    assert tokenizer.num_calls == 2


def test_dropping_all_prompts_names_the_key_and_the_shortest(tmp_path: Path) -> None:
    source = write(tmp_path / "train.jsonl", ["a b", "a b c"])
    with pytest.raises(
        DataError, match=r"all 2 prompts of .*max_prompt_length=3 tokens; the shortest has 4: raise"
    ):
        filter_long(load_prompts([source], default_env="e"), WordTokenizer(), 3)


def test_an_empty_data_set_stays_empty() -> None:
    empty = load_prompts([], default_env="e")
    assert filter_long(empty, WordTokenizer(), 1) == (
        Dataset(prompts=(), sources=(), lengths=()),
        0,
    )
