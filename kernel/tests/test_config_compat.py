"""SkyRL's keys: each is read or has an answer, and the answer does what it says."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.config import (
    Config,
    Layers,
    ResolvedConfig,
    Section,
    merge_layers,
    resolve_config,
    settle_names,
    unread_variables,
)
from skyrl_kernel.config.compat import TABLE, Row, key_rows, renamed, table
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.config.words import read_word
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import SLOTS

_, *_BLOCKS = Path(__file__).with_name("skyrl_keys.txt").read_text().strip().split("\n\n")
WORDS, SKYRL_VALUES, SKYRL_SFT, SKYRL_VARIABLES = (block.splitlines()[1:] for block in _BLOCKS)
SKYRL = {word.partition("=")[0]: read_word(word.partition("=")[2]) for word in WORDS}
"""SkyRL's key → its default."""


class SearchConfig(Section):
    """``environment.search``."""

    topk: int = 3
    """Passages."""


def layers(*words: str, presets: Any = (), files: Any = ()) -> Layers:
    return settle_names(merge_layers(presets, files, words), lambda key, name: False)


def resolve(*words: str, **options: Any) -> ResolvedConfig:
    options = {"plugin_sections": {}, "unselected": {}, "allow_not_yet": True} | options
    return resolve_config(layers(*words), **options)


def refusal(*words: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*words, **options)
    return str(caught.value)


def settings(answers: Any) -> list[str]:
    return [answer.setting for answer in answers]


# --- the table is complete ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [*SKYRL, *SKYRL_SFT])
def test_every_key_of_skyrl_is_read_or_has_an_answer(key: str) -> None:
    (here,) = renamed({key: None})
    assert here in flatten(Config().model_dump()) or table().row(here), key


def test_defaults_are_skyrls_except_where_the_description_says_otherwise() -> None:
    tree = flatten(Config().model_dump(mode="json"))
    others = 0
    for key, default in SKYRL.items():
        (here,) = renamed({key: None})
        row = table().row(here)
        if row is not None:
            assert row.default_of(here) == default, key
        elif tree[here] != default:
            assert "SkyRL" in description(here), key
            others += 1
    assert 0 < others < 14


def description(key: str) -> str:
    model: Any = Config
    *sections, leaf = key.split(".")
    for part in sections:
        model = model.model_fields[part].annotation
    return str(model.model_fields[leaf].description)


@pytest.mark.parametrize("word", SKYRL_VALUES)
def test_every_name_of_skyrl_is_a_plugins_or_gets_an_answer(word: str) -> None:
    key, _, name = word.partition("=")
    groups = {slot.key: slot.groups for slot in SLOTS}.get(key, ())
    if discover().named(name, groups):
        return
    row = table().values[key, name]
    assert row.text
    assert row.status == "not here" or row.topic


def test_every_variable_of_skyrl_has_an_answer() -> None:
    assert set(SKYRL_VARIABLES) <= set(table().variables)


def rows() -> list[Row]:
    answers = table()
    return [*answers.keys.values(), *answers.values.values(), *answers.variables.values()]


def test_every_answer_says_why_and_what_is_not_yet_there_says_what_will_bring_it() -> None:
    for row in rows():
        assert re.search(r"[^.]$", row.text), row
        assert (row.topic in table().topics) == (row.status == "not yet"), row
    assert {row.topic for row in rows()} - {""} == set(table().topics)


def test_no_row_stands_there_twice() -> None:
    content = tomllib.loads(TABLE.read_text())
    keys = [row.name for group in content["keys"] for row in key_rows(group)]
    values = [(group["key"], name) for group in content["values"] for name in group["names"]]
    for found, whole in ((keys, table().keys), (values, table().values)):
        assert len(found) == len(whole)


def test_what_switches_a_row_on_is_a_key() -> None:
    known = {*flatten(Config().model_dump()), *table().keys}
    assert {row.switch.partition("=")[0] for row in rows()} - {""} <= known


def test_no_row_answers_for_a_key_that_is_read() -> None:
    tree = flatten(Config().model_dump())
    assert not [key for key in table().keys if key in tree]
    assert not [key for key in table().moved if key in tree or key in table().keys]


def test_a_key_that_is_called_otherwise_leads_to_one_that_is_read_or_answered() -> None:
    known = [*flatten(Config().model_dump()), *table().keys]
    for new in table().moved.values():
        assert any(key == new or key.startswith(f"{new}.") for key in known), new


# --- called otherwise ----------------------------------------------------------------------------


def test_a_key_that_is_called_otherwise_arrives_with_its_origin() -> None:
    config = resolve("environment.skyrl_gym.max_env_workers=7")
    assert config.config.environment.max_env_workers == 7
    origin = config.origins["environment.max_env_workers"]
    assert origin == "command line, as environment.skyrl_gym.max_env_workers"


def test_a_section_that_is_called_otherwise_takes_its_keys_along() -> None:
    config = resolve(
        "environment.skyrl_gym.search.topk=5", plugin_sections={"environment.search": SearchConfig}
    )
    assert config[SearchConfig].topk == 5


def test_both_names_of_a_key_are_one_in_the_order_of_precedence(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("environment: {max_env_workers: 3}\n")
    word = "environment.skyrl_gym.max_env_workers=4"
    merged = layers(word, files=[path], presets=[("p", {"environment.max_env_workers": 2})])
    assert merged.values == {"environment.max_env_workers": 4}
    path.write_text("environment: {skyrl_gym: {max_env_workers: 3}}\n")
    merged = layers(files=[path], presets=[("p", {"environment.max_env_workers": 2})])
    assert merged.values == {"environment.max_env_workers": 3}


def test_two_names_with_two_values_are_refused() -> None:
    words = ["trainer.use_sample_packing=true", "trainer.remove_microbatch_padding=false"]
    with pytest.raises(
        ConfigError,
        match=r"^trainer\.use_sample_packing=true and trainer\.remove_microbatch_padding=false are one "
        r"key under two names; set trainer\.remove_microbatch_padding alone$",
    ):
        layers(*words)
    assert layers(words[0], "trainer.remove_microbatch_padding=true").values


def test_the_flat_engine_keys_of_older_scripts_are_read() -> None:
    config = resolve("generator.backend=transformers", "generator.max_num_seqs=7")
    assert config.config.generator.inference_engine.max_num_seqs == 7


# --- not read ------------------------------------------------------------------------------------


def test_what_is_not_read_is_accepted_with_any_value_and_reported() -> None:
    config = resolve("generator.batched=true", "trainer.flash_attn=false", allow_not_yet=False)
    assert settings(config.not_read) == ["generator.batched=true", "trainer.flash_attn=false"]
    assert "every trajectory is played by itself" in str(config.not_read[0])
    assert "batched" not in config.tree["generator"]


def test_its_type_is_checked_all_the_same() -> None:
    assert refusal("generator.batched=5") == (
        "generator.batched=5 (command line): input should be a valid boolean, unable to interpret input"
    )
    assert "valid integer" in refusal("trainer.placement.critic_num_nodes=two")


def test_the_section_of_a_plugin_that_is_not_selected_is_not_read_if_skyrl_has_it() -> None:
    config = resolve("environment.search.topk=5", unselected={"environment.search": "search"})
    assert str(config.not_read[0]) == (
        "environment.search.topk=5 (command line): read by the plugin 'search', which is not selected"
    )
    message = refusal("environment.search.x=5", unselected={"environment.search": "search"})
    assert "belongs to the plugin 'search', which is not selected; add --plugin search" in message


def test_secrets_are_not_shown() -> None:
    config = resolve("generator.inference_engine.router_init_kwargs.api_key=0123456789")
    assert "0123456789" not in str(config.not_read[0])


# --- not yet -------------------------------------------------------------------------------------


def test_skyrls_default_asks_for_nothing_that_is_missing() -> None:
    words = [word for word in WORDS if table().row(word.partition("=")[0])]
    assert len(words) > 200
    config = resolve_config(merge_layers([], [], words), {}, {})
    assert not config.not_yet
    assert len(config.not_read) >= len(words)


def test_another_value_is_refused_in_a_run_and_listed_without_one() -> None:
    word = "trainer.mtp.enabled=true"
    assert refusal(word, allow_not_yet=False) == (
        "trainer.mtp.enabled=true (command line): no draft head is trained. SkyRL has it, this project "
        "not yet: docs/roadmap.md, 'Speculative decoding'"
    )
    assert settings(resolve(word).not_yet) == [word]


def test_a_setting_of_a_feature_counts_only_where_the_feature_is_asked_for() -> None:
    weight, enabled = "trainer.mtp.loss_weight=0.5", "trainer.mtp.enabled=true"
    assert settings(resolve(weight, allow_not_yet=False).not_read) == [weight]
    assert settings(resolve(weight, enabled).not_yet) == [weight, enabled]

    first, ray = "trainer.policy.inference_only_init=true", "trainer.runtime=ray"
    assert settings(resolve(first, allow_not_yet=False).not_read) == [first]
    assert settings(resolve(first, ray).not_yet) == [first]


def test_equal_values_are_equal_however_they_are_written() -> None:
    words = [
        "trainer.policy.model.fake_int4_qat.q_min=-8",
        "trainer.mtp.enabled=no",
        "trainer.max_tokens_per_microbatch=-1",
    ]
    assert not resolve(*words, allow_not_yet=False).not_yet
    assert not resolve("trainer.policy.fsdp_config.wrap_policy={}", allow_not_yet=False).not_yet


def test_keys_below_a_mapping_are_answered_by_it() -> None:
    key = "generator.inference_engine.router_init_kwargs.policy"
    assert settings(resolve(f"{key}=5", allow_not_yet=False).not_read) == [f"{key}=5"]
    both = resolve(f"{key}=5", "generator.inference_engine.backend=vllm")
    assert settings(both.not_yet) == [f"{key}=5"]
    same = "trainer.policy.megatron_config.transformer_config_kwargs.recompute_method=uniform"
    assert settings(resolve(same, "trainer.strategy=megatron").not_read) == [same]


def test_a_name_that_no_plugin_has_is_replaced_by_the_default() -> None:
    config = resolve("generator.inference_engine.backend=sglang")
    assert config.config.generator.inference_engine.backend == "transformers"
    origin = config.origins["generator.inference_engine.backend"]
    assert origin == "default, since there is no 'sglang'"
    assert "generator.inference_engine.backend=sglang (command line)" in refusal(
        "generator.inference_engine.backend=sglang", allow_not_yet=False
    )


def test_a_name_that_a_plugin_has_is_left_alone() -> None:
    merged = merge_layers([], [], ["trainer.algorithm.policy_loss_type=gspo"])
    assert settle_names(merged, lambda key, name: name == "gspo").values == merged.values


def test_a_name_is_taken_out_of_a_list_of_names() -> None:
    merged = layers("trainer.logger=[swanlab, console]")
    assert merged.values == {"trainer.logger": ["console"]}
    assert settings(merged.replaced) == ["trainer.logger=swanlab"]


@pytest.mark.parametrize("word", ["true", "True", "1"])
def test_a_switch_that_no_plugin_serves_is_not_there_yet(word: str) -> None:
    key = "trainer.fully_async.enabled"
    config = resolve(f"{key}={word}")
    assert settings(config.not_yet) == [f"{key}=true"]
    assert config.config.trainer.max_staleness == 0
    assert config.origins[key] == "default, since true is not there yet"
    merged = merge_layers([], [], [f"{key}={word}"])
    assert settle_names(merged, lambda _, name: name == "true").values == merged.values
    assert not layers(f"{key}=false").replaced


# --- not here ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("generator.inference_engine.async_engine=false", "SkyRL has removed it; every request"),
        ("generator.inference_engine.remote_urls=['x:1']", "external_server_urls"),
        ("generator.inference_engine.enable_http_endpoint=true", "leave it out"),
        ("generator.inference_engine.override_existing_update_group=enable", "leave it out"),
        ("trainer.algorithm.use_tis=true", "tis_ratio_type=token"),
        ("trainer.algorithm.tis_imp_ratio_cap=2.0", "token_tis_ratio_clip_high"),
        ("trainer.algorithm.loss_reduction=token_mean_legacy", "loss_reduction=token_mean"),
        ("trainer.log_example_interval=5", "trainer.print_example_interval"),
        ("trainer.override_entrypoint=a.b", "a plugin in a slot replaces the part that differs"),
        ("trainer.strategy=fsdp2", "renamed it: trainer.strategy=fsdp"),
        ("generator.rope_theta=1", "rope_parameters"),
        ("batch_size=4", "Here batch_size is trainer.train_batch_size and trainer.policy_mini_"),
        ("cache_dir=x", "'skyrl run --plugin sft' tokenises rows when the run begins"),
        ("trainer.policy.optimizer_config.scheduler=cosine", "constant_with_warmup"),
        ("trainer.logger=swanlab", "trainer.logger takes several loggers"),
    ],
)
def test_what_is_not_here_is_refused_with_what_to_use(word: str, message: str) -> None:
    text = refusal(word)
    assert text.startswith(f"{word.partition('=')[0]}=")
    assert message in text
    assert text.endswith(". It is SkyRL's, and not here")
    assert "\n" not in text


@pytest.mark.parametrize(
    "word",
    ["generator.inference_engine.async_engine=true", "trainer.log_example_interval=-1"],
)
def test_the_value_that_changes_nothing_is_accepted(word: str) -> None:
    assert settings(resolve(word, allow_not_yet=False).not_read) == [word]


def test_settings_with_one_answer_are_refused_in_one_sentence() -> None:
    assert refusal("num_steps=9", "seed=1", "batch_size=4").startswith(
        "num_steps=9, seed=1, batch_size=4 (command line): of SkyRL's main_sft; supervised "
        "training is 'skyrl run --plugin sft' with the keys of every run. Here num_steps is "
        "trainer.max_training_steps, seed is trainer.seed, batch_size is "
    )


def test_everything_that_is_wrong_is_said_at_once() -> None:
    words = ["trainer.strategy=deepspeed", "trainer.epoch=1", "trainer.mtp.enabled=true"]
    assert len(refusal(*words, allow_not_yet=False).splitlines()) == 3


# --- hints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("trainer.policy.model.lora.rnk=8", "trainer.policy.model.lora.rank"),
        (
            "trainer.placement.policy_num_gpu_per_node=8",
            "trainer.placement.policy_num_gpus_per_node",
        ),
        ("trainer.lr=1", "trainer.policy.optimizer_config.lr"),
        ("trainer.sed=1", "trainer.seed"),
    ],
)
def test_a_misspelt_key_gets_the_nearest_one_though_it_is_not_read(word: str, nearest: str) -> None:
    assert refusal(word).endswith(f"; did you mean '{nearest}'?")


def test_a_section_of_keys_that_are_not_read_takes_no_value() -> None:
    message = refusal("trainer.mtp=true")
    assert "is a section and takes no value; it has the keys trainer.mtp.enabled, " in message


# --- environment variables -------------------------------------------------------------------------


def test_variables_that_are_set_and_not_read_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in table().variables:
        monkeypatch.delenv(name, raising=False)
    assert unread_variables() == []
    monkeypatch.setenv("SKYRL_DISABLE_SPEC", "1")
    monkeypatch.setenv("SKYRL_LOG_FILE", "")
    monkeypatch.setenv("TENSORBOARD_DIR", "boards")
    monkeypatch.setenv("SWANLAB_API_KEY", "0123456789abcdef")
    found = [str(answer) for answer in unread_variables()]
    assert found == [
        "SKYRL_DISABLE_SPEC=1 (environment): samples without the draft heads that are trained",
        "SWANLAB_API_KEY=*** (environment): no plugin here writes to SwanLab",
    ]


def test_skyrls_zero_env_workers_is_refused_with_what_to_use() -> None:
    with pytest.raises(
        ConfigError, match=r"max_env_workers=0 leaves envs no thread.*use 1 or more"
    ):
        resolve("environment.skyrl_gym.max_env_workers=0")
