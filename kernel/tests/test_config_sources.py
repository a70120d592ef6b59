"""Files and words: what a person writes becomes the value that was meant."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.config.sources import flatten, read_file, read_overrides, unflatten
from skyrl_kernel.config.words import read_word
from skyrl_kernel.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-6", 1e-6),
        ("5E3", 5000.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("[a, 1, [2]]", ["a", 1, [2]]),
        ("['data/train.parquet']", ["data/train.parquet"]),
        ('"3"', "3"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        # text that YAML 1.1 takes for something else
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 10:00:00", "2026-01-01 10:00:00"),
        ("[2026-01-01]", ["2026-01-01"]),
        ("007", "007"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("12:30:45", "12:30:45"),
        ("on", "on"),
        ("no", "no"),
        ("none", "none"),
        # text that YAML takes for structure
        ("-", "-"),
        ("a: b", "a: b"),
        ("run #3", "run #3"),
        ("#3", "#3"),
        ("!!python/object:os.system", "!!python/object:os.system"),
        ("&a", "&a"),
        ("'a' and b", "'a' and b"),
        ("[a", "[a"),
        ("a=b", "a=b"),
        (" 3 ", 3),
    ],
)
def test_the_value_of_a_word(text: str, value: Any) -> None:
    found = read_overrides([f"trainer.key={text}"])
    assert found == {"trainer.key": value}
    assert type(found["trainer.key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{reasoning_effort:low}", {"reasoning_effort": "low"}),
        ("{a:1,b:http://x}", {"a": 1, "b": "http://x"}),
        ("{a: 'x,b:c'}", {"a": "x,b:c"}),
        ('{"a":1,"b":{c:2}}', {"a": 1, "b": {"c": 2}}),
        ("[{a:1}]", [{"a": 1}]),
        ("{'a:b': 1}", {"a:b": 1}),
    ],
)
def test_a_mapping_may_be_written_without_blanks(text: str, value: Any) -> None:
    assert read_word(text) == value


def test_a_mapping_becomes_dotted_keys_and_the_last_of_equal_words_wins() -> None:
    words = ["a.b={c: 1, d: {e: 2}}", "a.b.c=3", "empty={}"]
    assert read_overrides(words) == {"a.b.c": 3, "a.b.d.e": 2, "empty": {}}


@pytest.mark.parametrize("word", ["trainer.epochs", "=3", "a..b=3", ".a=3", "a.=1", "--lr"])
def test_a_word_without_key_and_value_is_refused_with_an_example(word: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form key=value, such as trainer\.epochs=3"):
        read_overrides([word])


@pytest.mark.parametrize("word", ["+trainer.x=1", "++trainer.x=1"])
def test_hydras_plus_is_refused_with_the_word_to_write(word: str) -> None:
    with pytest.raises(ConfigError, match=r"\+trainer\.x=1': write trainer\.x=1 without the '\+'"):
        read_overrides([word])


YAML = """
trainer:
  epochs: 2
  run_name: 2026-01-01
  policy.optimizer_config: {lr: 1e-6}
data.train_data:
  - a.parquet
"""

TOML = """
data.train_data = ["a.parquet"]
[trainer]
epochs = 2
run_name = "2026-01-01"
[trainer.policy.optimizer_config]
lr = 1e-6
"""

READ = {
    "trainer.epochs": 2,
    "trainer.run_name": "2026-01-01",
    "trainer.policy.optimizer_config.lr": 1e-6,
    "data.train_data": ["a.parquet"],
}


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML)])
def test_yaml_and_toml_files_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_file(tmp_path / name) == READ


def test_anchors_merge_and_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("trainer:\n  policy: &m {a: 1, b: 2}\n  ref:\n    <<: *m\n    b: 3\n")
    assert read_file(path)["trainer.ref.a"] == 1
    assert read_file(path)["trainer.ref.b"] == 3
    path.write_text("# nothing\n")
    assert read_file(path) == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.yaml",
            "trainer: {epochs: 1}\ntrainer: {seed: 2}\n",
            "the key 'trainer' stands there twi",
        ),
        ("a.yaml", "a: [1", "is not valid"),
        ("a.toml", "a = ", "is not valid"),
        ("a.toml", "a = 1\na = 2\n", "is not valid"),
        ("a.yaml", "- a\n- b\n", "holds a list; it must be a mapping of keys"),
        ("a.yaml", "!!python/object/apply:os.getcwd []\n", "is not valid"),
        ("a.json", "{}", r"has the suffix '\.json'; use \.yaml, \.yml or \.toml"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config file '/no/such.yaml' cannot be read"):
        read_file(Path("/no/such.yaml"))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(path)


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers())
names = st.text(st.sampled_from("abc_"), min_size=1, max_size=3)
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)


@given(tree=st.dictionaries(names, trees, max_size=3))
def test_flattening_and_unflattening_gives_the_tree_back(tree: dict[str, Any]) -> None:
    assert unflatten(flatten(tree)) == tree


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"a": 1, "a.b": 2}, "'a.b' lies below 'a', which is set to a value"),
        ({"a.b": 2, "a": 1}, "'a' is set to a value, but it is a section with keys: b"),
    ],
)
def test_a_key_cannot_be_a_value_and_a_section(flat: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unflatten(flat)
