"""Precedence, origins, and what is refused with which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, field_validator

from skyrl_kernel.config import (
    KERNEL_SECTIONS,
    AlgorithmConfig,
    Config,
    ResolvedConfig,
    Section,
    TrainerConfig,
    merge_layers,
    resolve_config,
)
from skyrl_kernel.errors import ConfigError


class FooConfig(Section):
    """``environment.foo``."""

    size: int = Field(default=3, ge=1)
    """How many."""
    options: dict[str, int] = Field(default_factory=dict)
    """Whatever."""
    place: str = "here"
    """Where."""

    @field_validator("place")
    @classmethod
    def _is_near(cls, place: str) -> str:
        if place == "far":
            raise ValueError("that is too far; write near")
        return place


FOO = {"environment.foo": FooConfig}


def resolve(*words: str, presets: Any = (), files: Any = (), **options: Any) -> ResolvedConfig:
    options = {"plugin_sections": FOO, "unselected": {}} | options
    return resolve_config(merge_layers(presets, files, words), **options)


# --- precedence ------------------------------------------------------------------------


def test_words_win_over_files_over_presets_over_defaults(tmp_path: Path) -> None:
    path, later = tmp_path / "a.yaml", tmp_path / "b.toml"
    path.write_text("trainer: {epochs: 20, seed: 21, eval_interval: 22}\n")
    later.write_text("trainer.seed = 31\n")
    config = resolve(
        "trainer.epochs=40",
        presets=[("p", {"trainer.epochs": 10, "trainer.seed": 11, "trainer.ckpt_interval": 12})],
        files=[path, later],
    )

    trainer = config.config.trainer
    assert (trainer.epochs, trainer.seed, trainer.eval_interval, trainer.ckpt_interval) == (
        40,
        31,
        22,
        12,
    )
    assert trainer.eval_batch_size == TrainerConfig().eval_batch_size
    assert {
        key: config.origins[f"trainer.{key}"] for key in ("epochs", "seed", "eval_interval")
    } == {
        "epochs": "command line",
        "seed": f"file {later}",
        "eval_interval": f"file {path}",
    }
    assert config.origins["trainer.ckpt_interval"] == "preset p"
    assert config.origins["trainer.eval_batch_size"] == "default"


def test_every_leaf_of_the_tree_has_an_origin_and_a_plain_value() -> None:
    config = resolve("environment.foo.options={a: 1}", "trainer.logger=[jsonl]")

    assert config.origins["environment.foo.options.a"] == "command line"
    assert config.origins["trainer.logger"] == "command line"
    assert config.origins["environment.foo.size"] == "default"
    assert config.tree["environment"]["foo"] == {"size": 3, "options": {"a": 1}, "place": "here"}
    assert config.tree["trainer"]["policy"]["model"]["path"] == "builtin:tiny"


def test_a_free_form_mapping_is_merged_over_layers_and_an_empty_one_clears_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("environment: {foo: {options: {b: 2}}}\n")
    presets = [("p", {"environment.foo.options": {"a": 1}})]

    assert resolve(presets=presets, files=[path])[FooConfig].options == {"a": 1, "b": 2}
    cleared = resolve("environment.foo.options={}", presets=presets, files=[path])
    assert cleared[FooConfig].options == {}


def test_presets_that_agree_or_set_other_keys_are_merged() -> None:
    presets = [("p", {"trainer.epochs": 2, "trainer.seed": 1}), ("q", {"trainer.epochs": 2})]
    assert resolve(presets=presets).config.trainer.epochs == 2


def test_presets_that_differ_are_refused_naming_both_and_the_key() -> None:
    presets = [("p", {"trainer.epochs": 2}), ("q", {"trainer": {"epochs": 3}})]
    with pytest.raises(
        ConfigError,
        match=r"presets of 'p' and 'q' differ on trainer\.epochs: 2 and 3; choose by trainer\.epochs=…",
    ):
        merge_layers(presets)


def test_all_clashes_are_told_at_once() -> None:
    presets = [
        ("p", {"trainer.epochs": 2, "trainer.seed": 1}),
        ("q", {"trainer.seed": 2, "trainer.epochs": 3}),
    ]
    with pytest.raises(
        ConfigError, match=r"on trainer\.epochs: 2 and 3.*\n.*on trainer\.seed: 1 and 2"
    ):
        merge_layers(presets)


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_plugin_is_there_for_goes_before_what_another_s_preset_chooses(order: int) -> None:
    key = "trainer.algorithm.policy_loss_type"
    presets = [("method", {key: "plain"}), ("other", {key: "odd"}), ("loss", {key: "loss"})][
        ::order
    ]
    layers = merge_layers(presets, slots={"loss": [key]})
    assert layers.values[key] == "loss"
    lost = ["plain of method", "odd of other"][::order]
    assert layers.origins[key] == f"preset loss, before {', '.join(lost)}"
    with pytest.raises(ConfigError, match="differ on"):
        merge_layers(presets, slots={"loss": [key], "other": [key]})
    assert merge_layers(presets, [], [f"{key}=mine"], slots={"loss": [key]}).get(key) == "mine"


def test_a_key_that_the_user_sets_settles_the_clash() -> None:
    presets = [("p", {"trainer.epochs": 2}), ("q", {"trainer.epochs": 3})]
    assert resolve("trainer.epochs=4", presets=presets).config.trainer.epochs == 4


# --- layers before they are checked ------------------------------------------------------


def test_a_layer_knows_defaults_sections_and_types() -> None:
    layers = merge_layers(
        [], [], ["trainer.algorithm.use_kl_loss=yes", "trainer.policy.model.path=x"]
    )
    assert layers.get("trainer.algorithm.use_kl_loss") is True
    assert layers.get("trainer.policy") == {"model": {"path": "x"}}
    assert layers.get("trainer.strategy") == "fsdp"
    assert layers.get("trainer.ref.model.path") is None


@pytest.mark.parametrize("word", ["1", "true", "on"])
def test_every_way_to_say_yes_turns_a_switch_on(word: str) -> None:
    # A switch selects a plugin: were it on in the config and off for the selection, the KL term
    # would be asked for and silently missing.
    layers = merge_layers([], [], [f"trainer.algorithm.use_kl_loss={word}"])
    assert layers.get("trainer.algorithm.use_kl_loss") is True


def test_a_value_of_the_wrong_type_waits_for_the_check() -> None:
    assert merge_layers([], [], ["trainer.epochs=many"]).get("trainer.epochs") == "many"


# --- unknown keys ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("trainer.epoch=1", "trainer.epochs"),
        ("trainer.polcy.model.path=x", "trainer.policy.model.path"),
        ("trainer.lr=1", "trainer.policy.optimizer_config.lr"),
        ("trainer.sequence_parallel_size=2", "trainer.policy.sequence_parallel_size"),
        ("n_samples_per_prompt=2", "generator.n_samples_per_prompt"),
        ("environment.foo.siz=1", "environment.foo.size"),
        ("trainer.policy.model.path.x=1", "trainer.policy.model.path"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(word: str, nearest: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        resolve(word)
    assert str(caught.value) == (f"no config key '{key}' (command line); did you mean '{nearest}'?")


def test_a_key_like_no_other_points_to_the_reference() -> None:
    with pytest.raises(
        ConfigError, match=r"no config key 'zzz\.qqq' .*; docs/reference/config\.md"
    ):
        resolve("zzz.qqq=1")


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("trainer.epoch=1", "trainer.sed=1")
    assert len(str(caught.value).splitlines()) == 2


def test_a_section_takes_no_value() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'trainer\.logprobs_diff' \(command line\) is a section and takes no value; it has the "
        r"keys trainer\.logprobs_diff\.stop_above, trainer\.logprobs_diff\.warn_above$",
    ):
        resolve("trainer.logprobs_diff=true")
    with pytest.raises(ConfigError, match=r"and \d+ more$"):
        resolve("trainer=1")


def test_a_key_of_a_plugin_that_is_not_selected_names_it() -> None:
    with pytest.raises(
        ConfigError,
        match=r"'environment\.bar\.size' \(command line\) belongs to the plugin 'bar', which is not "
        r"selected; add --plugin bar",
    ):
        resolve("environment.bar.size=1", unselected={"environment.bar": "bar"})


# --- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "trainer.epochs=many",
            "trainer.epochs='many' (command line): input should be a valid int",
        ),
        ("trainer.epochs=0", "trainer.epochs=0 (command line): input should be greater than or eq"),
        (
            "trainer.epochs=1.5",
            "trainer.epochs=1.5 (command line): input should be a valid integer",
        ),
        (
            "trainer.run_name=",
            "trainer.run_name=None (command line): input should be a valid string",
        ),
        (
            "environment.foo.place=far",
            "environment.foo.place='far' (command line): that is too far; write near",
        ),
        ("trainer.run_name=..", "trainer.run_name='..' names no folder in trainer.ckpt_path"),
        ("trainer.seed=[1]", "trainer.seed=[1] (command line): input should be a valid integer"),
        (
            "trainer.policy.optimizer_config.lr=.nan",
            "=nan (command line): input should be a finite",
        ),
        (
            "data.train_data=a.parquet",
            "data.train_data='a.parquet' (command line): input should be",
        ),
        (
            "environment.foo.size=0",
            "environment.foo.size=0 (command line): input should be greater",
        ),
        (
            "trainer.policy.optimizer_config.scheduler=cosine",
            "scheduler='cosine' (command line): input should be 'constant_with_warmup' or 'linear'",
        ),
        (
            "generator.chat_template_kwargs.x=[1]",
            "generator.chat_template_kwargs.x=[1] (command line): input should be a valid boolean or",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_origin_and_what_it_should_be(
    word: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(word)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_origin_of_a_wrong_value_may_be_a_preset_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("trainer: {seed: x}\n")
    with pytest.raises(ConfigError) as caught:
        resolve(presets=[("p", {"trainer.epochs": 0})], files=[path])
    assert f"trainer.seed='x' (file {path})" in str(caught.value)
    assert "trainer.epochs=0 (preset p)" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.train_batch_size=100", "trainer.policy_mini_batch_size=16"],
            r"^trainer.train_batch_size=100 is not a multiple of trainer.policy_mini_batch_size=16",
        ),
        (["trainer.max_ckpts_to_keep=0"], "keeps no checkpoint to resume from; use -1"),
        (["trainer.resume_mode=from_path"], "set both or neither"),
        (["trainer.resume_path=x"], "set both or neither"),
        (["generator.sampling_params.temperature=0"], "use a temperature above 0"),
        (["generator.merge_stepwise_output=true"], "set both, or leave it out"),
        (
            [
                "generator.step_wise_trajectories=true",
                "generator.use_conversation_multi_turn=false",
            ],
            "makes each a row of its own; set one of them",
        ),
        (["generator.sampling_params.stop=['</a>', '']"], "the empty string ends every completion"),
        (["generator.eval_sampling_params.stop=['']"], "the empty string ends every completion"),
        (["generator.max_input_length=100"], "=100 is less than trainer.max_prompt_length=512"),
        (
            ["generator.max_input_length=600", "generator.max_turns=1"],
            "generator.max_turns=1 allows none; leave it out",
        ),
        (["trainer.ckpt_path=s3://bucket/x"], "ckpt_path='s3://bucket/x' is an address; runs are"),
        (["trainer.export_path=gs://x"], "mount the storage and name its folder"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_keys(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(*words)


@pytest.mark.parametrize(
    "word",
    [
        "trainer.ckpt_path=${oc.env:HOME}/runs",
        "trainer.epochs=${trainer.seed}",
        "generator.inference_engine.served_model_name=${trainer.policy.model.path}",
    ],
)
def test_what_would_be_filled_in_elsewhere_is_refused(word: str) -> None:
    with pytest.raises(
        ConfigError, match=r"\$\{.*\} would be taken as it stands; .* let the shell"
    ):
        resolve(word)


def test_numbers_become_text_where_text_is_meant() -> None:
    assert resolve("trainer.run_name=7").config.trainer.run_name == "7"
    assert resolve("trainer.run_name=007").config.trainer.run_name == "007"


# --- sections ----------------------------------------------------------------------------


def test_plugins_ask_for_sections_by_class() -> None:
    config = resolve("environment.foo.size=5", "trainer.algorithm.eps_clip_low=0.1")
    assert config[FooConfig].size == 5
    assert config[AlgorithmConfig].eps_clip_low == 0.1
    assert config[TrainerConfig] is config.config.trainer
    assert {type(config[section]) for _, section in KERNEL_SECTIONS} == {
        section for _, section in KERNEL_SECTIONS
    }


def test_asking_for_a_section_of_nobody_names_its_package() -> None:
    config = resolve(plugin_sections={})
    with pytest.raises(KeyError, match="no config section FooConfig in this run: the plugin"):
        config[FooConfig]


def test_a_config_cannot_be_changed() -> None:
    config = resolve()
    with pytest.raises(ValueError, match="frozen"):
        config.config.trainer.epochs = 3


def test_the_bound_on_staleness_counts_only_when_asynchronous() -> None:
    assert resolve().config.trainer.max_staleness == 0
    assert resolve("trainer.fully_async.enabled=true").config.trainer.max_staleness == 4


def test_every_key_is_described() -> None:
    def undescribed(model: type[Section], path: str) -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            if not info.description:
                found.append(f"{path}{name}")
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                found += undescribed(info.annotation, f"{path}{name}.")
        return found

    assert undescribed(Config, "") == []


def test_generation_ahead_replaces_groups_only_where_a_filter_finds_some() -> None:
    words = ["trainer.fully_async.enabled=true", "trainer.fully_async.sample_full_batch=true"]
    with pytest.raises(ConfigError, match=r"sample_full_batch=true replaces .* set both, or leave"):
        resolve(*words)
    resolve(*words, "trainer.algorithm.zero_variance_filter=true")
    resolve(words[1])  # in a synchronous run it is not read


def test_a_run_warns_before_it_stops() -> None:
    words = ["trainer.logprobs_diff.warn_above=0.5", "trainer.logprobs_diff.stop_above=0.2"]
    with pytest.raises(ConfigError, match=r"stop_above=0\.2 is below warn_above=0\.5"):
        resolve(*words)
    resolve(words[0], "trainer.logprobs_diff.stop_above=null")
