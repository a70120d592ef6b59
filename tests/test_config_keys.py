"""Config keys and what reads them: none is typed in vain, and no answer outlives its reason."""

import re
import tomllib

import pytest
from workspace import ROOT, package_folders

from skyrl_kernel.config import Config
from skyrl_kernel.config.compat import table
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.place import PLACES
from skyrl_kernel.plugins import PluginManager, discover
from skyrl_kernel.slots import SETS, SLOTS, SWITCHES

CONFIG = ROOT / "kernel" / "src" / "skyrl_kernel" / "config"
SOURCES = "\n".join(
    file.read_text()
    for folder in package_folders()
    for file in sorted((folder / "src").rglob("*.py"))
    if CONFIG not in file.parents
)
"""The code of every package, without the one that types the keys."""

THROUGH = {"trainer.fully_async.max_staleness_steps": "max_staleness"}
"""Key → the property of its section that is read instead."""

AGREES = {"trainer.critic_mini_batch_size"}
"""Keys that nothing reads, since their only right value is another key's: the tree refuses others."""

IN_SLOTS = {slot.key for slot in SLOTS} | {key for key, *_ in (*SETS, *SWITCHES)}


def manifests() -> dict[str, dict[str, list[str]]]:
    """Entry-point name → its table, of every package of the repository."""
    tables: dict[str, dict[str, list[str]]] = {}
    for folder in package_folders():
        for file in (folder / "src").glob("skyrl_*/plugin.toml"):
            tables |= tomllib.loads(file.read_text())
    return tables


@pytest.mark.parametrize("key", flatten(Config().model_dump()))
def test_a_typed_key_is_read(key: str) -> None:
    if key not in IN_SLOTS | AGREES:
        leaf = THROUGH.get(key, key.rpartition(".")[2])
        assert re.search(rf'\.{leaf}\b|"({re.escape(key)}|{leaf})"', SOURCES), (
            f"nothing reads {key}"
        )


def test_a_key_of_a_plugin_has_no_other_answer_than_that_it_is_not_read() -> None:
    sections = [path for one in manifests().values() for path in one.get("config", [])]
    for row in table().keys.values():
        if any(row.name.startswith(f"{path}.") for path in sections):
            assert row.status == "not read", f"{row.name} is read by a plugin: {row}"


def test_the_sections_of_skyrls_own_envs_have_skyrls_keys() -> None:
    catalog = discover()
    for name in ("search", "text2sql", "llm_as_a_judge"):
        manager = PluginManager(catalog)
        manager.load([catalog.find(name, ("skyrl.envs",))])
        path = f"environment.{name}"
        fields = {f"{path}.{field}" for field in manager.sections()[path].model_fields}
        assert {key for key in table().keys if key.startswith(f"{path}.")} <= fields


def test_a_name_that_a_package_has_needs_no_answer() -> None:
    able = {
        (key, name)
        for name, one in manifests().items()
        if not {*PLACES} & {*one.get("needs", [])}  # elsewhere the answer says what they need
        for key in one.get("slots", [])
    }
    assert not able & set(table().values)


def test_the_table_answers_for_keys_of_slots_or_of_closed_sets() -> None:
    for key, name in table().values:
        section, _, leaf = key.rpartition(".")
        model = Config
        for part in section.split("."):
            model = model.model_fields[part].annotation
        kind = model.model_fields[leaf].annotation
        choices = getattr(kind, "__args__", ())
        is_switch = kind is bool and name == "true"
        assert key in IN_SLOTS or is_switch or (choices and name not in choices), (key, name)


def test_a_variable_is_read_if_its_answer_says_so() -> None:
    for row in table().variables.values():
        is_read = f'"{row.name}"' in SOURCES
        assert is_read == (row.status == "read"), row.name


def test_every_env_and_logger_of_skyrl_has_a_plugin_or_an_answer() -> None:
    names = {entry.name for entry in discover()}
    envs = "gsm8k gsm8k_multi_turn aime search searchcode text2sql lcb multiply llm_as_a_judge"
    for name in envs.split():
        assert name in names or ("environment.env_class", name) in table().values, name
    for name in ("wandb", "mlflow", "swanlab", "tensorboard", "console"):
        assert name in names or ("trainer.logger", name) in table().values, name
