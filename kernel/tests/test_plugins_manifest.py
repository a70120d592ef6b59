"""plugin.toml: what it may say, and what its faults are called."""

from pathlib import Path

import pytest

from skyrl_kernel.plugins.manifest import ManifestError, parse_manifest, read_tables


def test_every_key_of_a_table_is_read() -> None:
    manifest = parse_manifest(
        {
            "summary": "Doubles.",
            "slots": ["trainer.strategy"],
            "config": ["trainer.double"],
            "needs": ["a"],
            "offers": ["b", "c"],
            "reads": ["trainer.algorithm.gamma", "trainer.algorithm.kl_ctrl."],
            "preset": {"trainer.strategy": "double"},
        }
    )
    assert manifest.summary == "Doubles."
    assert manifest.slots == ("trainer.strategy",)
    assert manifest.config == ("trainer.double",)
    assert (manifest.needs, manifest.offers) == (("a",), ("b", "c"))
    assert manifest.preset == {"trainer.strategy": "double"}
    keys = ("gamma", "kl_ctrl.type", "kl_ctrl", "lambd")
    read = [manifest.is_reader(f"trainer.algorithm.{key}") for key in keys]
    assert read == [True, True, False, False]
    assert parse_manifest({}).reads is None


def test_a_preset_means_the_same_with_quoted_and_with_nested_keys() -> None:
    quoted = parse_manifest({"preset": {"trainer.policy.lr": 1.0, "data.val_data": []}})
    nested = parse_manifest(
        {"preset": {"trainer": {"policy": {"lr": 1.0}}, "data": {"val_data": []}}}
    )
    assert quoted.preset == nested.preset


def test_a_preset_that_sets_one_key_in_both_forms_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"preset sets 'trainer\.epochs' twice"):
        parse_manifest({"preset": {"trainer.epochs": 1, "trainer": {"epochs": 2}}})


def test_a_misspelt_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ManifestError, match=r"unknown key 'slot'\. Did you mean 'slots'?"):
        parse_manifest({"slot": ["trainer.strategy"]})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"summary": 3}, "summary must be a string, found 3"),
        ({"slots": "trainer.strategy"}, "slots must be a list of strings"),
        ({"needs": [1]}, r"needs must be a list of strings, found \[1\]"),
        ({"preset": []}, "preset must be a table"),
        ("text", "expected a table, found 'text'"),
    ],
)
def test_a_wrong_type_is_refused_with_what_was_found(table: object, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parse_manifest(table)


def test_a_file_that_is_no_toml_is_refused_with_its_path_and_line(tmp_path: Path) -> None:
    path = tmp_path / "plugin.toml"
    path.write_text("[grpo]\nsummary = \n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"plugin\.toml: .*line 2"):
        read_tables(path)
