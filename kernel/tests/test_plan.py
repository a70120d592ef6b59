"""Everything that is decided, and refused, before anything is made."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_kernel.errors import CapabilityError, ConfigError, PluginSelectionError
from skyrl_kernel.plan import Plan, make_plan, named_source
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import BACKENDS, ENVS, LOGGERS, PLUGINS, STAGES
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import installed

OBSERVER = "from skyrl_kernel.hookspecs import hookimpl\n@hookimpl\ndef on_step_end(step): ...\n"
ENV = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def make_env(name): ...

@hookimpl
def load_dataset(source): ...
"""

PARTS = """
from skyrl_kernel.hookspecs import hookimpl

async def by_mail(trainer, engine, version): ...

@hookimpl
def make_engine(name): ...

@hookimpl
def make_tokenizer(name): ...

@hookimpl
def sync_weights(name):
    return by_mail if name == "mail" else None
"""
ENGINE = "generator.inference_engine.backend"
SYNC = "generator.inference_engine.weight_sync_backend"
WORDS = f"""
[silent]
slots = ["{ENGINE}"]
offers = ["recieves_weights"]
[words]
slots = ["generator.tokenizer"]
offers = ["shares_module", "concurrent_generation"]
[mail]
slots = ["{SYNC}"]
needs = ["receives_weights", "mailbox"]
"""


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        for name in ("first", "second"):
            make_distribution(
                folder,
                f"skyrl-{name}",
                modules={f"skyrl_{name}": OBSERVER},
                entry_points={LOGGERS: {name: f"skyrl_{name}"}},
            )
        make_distribution(
            folder,
            "skyrl-env-dice",
            modules={"skyrl_env_dice": ENV},
            entry_points={ENVS: {"dice": "skyrl_env_dice"}},
        )
        module = "skyrl_parts.plugin"
        make_distribution(
            folder,
            "skyrl-parts",
            modules={module: PARTS},
            entry_points={
                BACKENDS: {"silent": module, "words": module},
                PLUGINS: {"mail": module},
            },
            files={"skyrl_parts/plugin.toml": WORDS},
        )
        discover(refresh=True)
        yield folder


def plan(*overrides: str, plugins: tuple[str, ...] = ("scripted",)) -> Plan:
    return make_plan(plugins, [], overrides)


def names(made: Plan, group: str) -> set[str]:
    return {entry.name for entry in made.entries if entry.group == group}


def test_a_preset_fills_the_slots_and_their_plugins_are_selected() -> None:
    made = plan()

    assert list(made.stages) == [slot.hook for slot in STAGES]
    providers = {hook: resolved.provider.name for hook, resolved in made.stages.items()}
    assert providers == {
        "generate": "agent",
        "reward": "env_reward",
        "select": "keep_all",
        "advantage": "scripted",
        "loss": "scripted",
        "sync_weights": "scripted",
        "evaluate": "accuracy",
    }
    assert names(made, ENVS) == {"scripted"}
    assert made.selected("scripted", BACKENDS)
    assert not made.selected("fsdp", BACKENDS)


def test_naming_an_implementation_in_a_slot_selects_its_plugin_without_its_preset() -> None:
    made = plan("trainer.strategy=scripted", plugins=("scripted",))
    other = plan("trainer.algorithm.advantage_estimator=grpo")

    assert other.stages["advantage"].provider.name == "grpo"
    assert other.tree.trainer.algorithm.policy_loss_type == "scripted"  # grpo's preset says regular
    assert other.config.origins["trainer.algorithm.policy_loss_type"] == "preset scripted"
    assert made.config.origins["trainer.strategy"] == "command line"


@pytest.mark.parametrize("word", ["true", "1", "yes"])
def test_a_switch_selects_its_wrapper(word: str) -> None:
    made = plan(f"trainer.algorithm.use_entropy_loss={word}")

    assert "entropy_loss" in names(made, PLUGINS)
    assert [entry.name for entry in made.stages["loss"].wrappers] == ["entropy_loss"]
    assert "entropy" in made.stages["loss"].value.coefficients
    assert plan().stages["loss"].wrappers == ()


def test_loggers_of_the_key_and_of_the_command_add_up() -> None:
    assert names(plan(), LOGGERS) == set()
    both = plan("trainer.logger=[first]", plugins=("scripted", "second"))
    assert names(both, LOGGERS) == {"first", "second"}
    assert both.tree.trainer.loggers == ("first", "second")
    assert both.config.origins["trainer.logger"] == "command line and --plugin"
    assert plan("trainer.logger=first").tree.trainer.loggers == ("first",)


def test_an_unknown_plugin_is_refused_with_the_nearest_name_and_how_to_install_it() -> None:
    with pytest.raises(
        PluginSelectionError,
        match=r"no plugin named 'scriptd' is installed\. Did you mean 'scripted'\?.*"
        r"pip install skyrl-scriptd",
    ):
        plan(plugins=("scriptd",))


def test_an_unknown_name_in_a_slot_is_refused_with_its_key() -> None:
    with pytest.raises(
        PluginSelectionError, match=r"^trainer\.strategy=megatrn: no backend named 'megatrn'"
    ):
        plan("trainer.strategy=megatrn")


def test_a_slot_holds_a_name() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy=\[1\] names no implementation"):
        plan("trainer.strategy=[1]")


@pytest.mark.parametrize("value", ["null", "3", "[1]", "[null]"])
@pytest.mark.parametrize("plugins", [("scripted",), ("scripted", "first")])
def test_loggers_are_names(value: str, plugins: tuple[str, ...]) -> None:
    expected = r"^trainer\.logger=.* \(command line\): it must be a name or a list of names"
    with pytest.raises(ConfigError, match=expected):
        plan(f"trainer.logger={value}", plugins=plugins)


@pytest.mark.parametrize("value", ["null", "3"])
def test_the_env_is_a_name(value: str) -> None:
    told = rf"^environment\.env_class={value} \(command line\): it must be a name$"
    with pytest.raises(ConfigError, match=told):
        plan(f"environment.env_class={value}")


@pytest.mark.parametrize("key", ["trainer.logger", "environment.env_class"])
def test_a_name_is_no_section(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^no config key '{key}\.a' \(command line\)"):
        plan(f"{key}={{a: 1}}")


def test_a_plugin_of_another_kind_does_not_fill_a_slot() -> None:
    with pytest.raises(PluginSelectionError, match=r"agent.*which is of another kind"):
        plan("trainer.strategy=agent")


def test_adapters_need_a_trainer_that_trains_them() -> None:
    word = "trainer.policy.model.lora.rank=8"
    with pytest.raises(
        CapabilityError, match=r"lora\.rank=8 needs 'trains_adapters'.*backend/fsdp"
    ):
        make_plan(["scripted"], (), [word])
    make_plan(["scripted"], (), [word.replace("8", "0")])


def test_rows_are_divided_by_a_trainer_that_can() -> None:
    word = "trainer.policy.sequence_parallel_size=2"
    ranks = "trainer.placement.policy_num_gpus_per_node=2"
    with pytest.raises(CapabilityError, match=r"size=2 needs 'divides_rows'.*backend/fsdp"):
        make_plan(["scripted"], (), [word, ranks, "generator.inference_engine.num_engines=2"])


def test_staleness_needs_an_engine_that_generates_while_the_trainer_trains() -> None:
    assert plan("trainer.fully_async.enabled=true").tree.trainer.max_staleness == 4
    with pytest.raises(
        CapabilityError, match=r"trainer\.fully_async\.enabled.*concurrent_generation.*scripted"
    ):
        plan(
            "trainer.fully_async.enabled=true",
            "environment.env_class=dice",
            plugins=("grpo", "fsdp", "transformers"),
        )


def test_what_a_plugin_offers_that_makes_something_else_is_not_asked_of_the_engine() -> None:
    ahead = ("trainer.fully_async.enabled=true", "environment.env_class=dice")
    with pytest.raises(
        CapabilityError,
        match=r"^trainer\.fully_async\.enabled.* needs 'concurrent_generation' of "
        rf"{ENGINE}=transformers or trainer\.runtime=local, which does not offer it\. Selected backend 'vllm'",
    ):
        plan(f"{ENGINE}=transformers", *ahead, plugins=("grpo", "fsdp", "vllm"))


def test_an_engine_shares_no_module_because_a_tokenizer_could() -> None:
    words = (f"{ENGINE}=silent", "generator.tokenizer=words", "environment.env_class=dice")
    with pytest.raises(
        CapabilityError,
        match=rf"^plugin 'shared' .* needs 'shares_module' of {ENGINE}=silent, which does not offer it\.",
    ):
        plan(*words, plugins=("grpo", "fsdp"))


@pytest.mark.parametrize(
    ("engine", "takes"), [("transformers", "push|shared"), ("silent", "none of those installed")]
)
def test_a_transport_that_the_engine_does_not_receive_is_refused_with_those_that_it_does(
    engine: str, takes: str
) -> None:
    words = (f"{ENGINE}={engine}", f"{SYNC}=mail", "environment.env_class=dice")
    told = re.escape(f"The engine '{engine}' takes {SYNC}={takes}.")
    with pytest.raises(CapabilityError, match=rf"'mail' .* needs 'mailbox', .* {told}"):
        plan(*words, plugins=("grpo", "fsdp"))


def test_a_run_tells_a_doubtful_word_of_a_plugin_that_it_uses() -> None:
    made = plan(f"{ENGINE}=silent")
    (note,) = made.notes
    assert note.startswith(
        "backend 'silent' (skyrl-parts 0.1.0): offers in its plugin.toml has 'recie"
    )
    assert plan().notes == []


AHEAD = "trainer.fully_async"


def test_forgetting_cached_keys_needs_an_engine_that_can() -> None:
    words = [f"{AHEAD}.enabled=true", f"{AHEAD}.clear_kv_cache_on_weight_sync=true"]
    plan(*words)
    with pytest.raises(
        CapabilityError, match=r"clear_kv_cache_on_weight_sync=true needs 'forgets_cache'.*scripted"
    ):
        plan(*words, "environment.env_class=dice", plugins=("grpo", "fsdp", "transformers"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["max_staleness_steps=2"], "of generation ahead of training"),
        (["sample_full_batch=true"], "of generation ahead of training"),
        # batches of 2, 4 steps ahead: 2 × 5 = 10
        (
            ["enabled=true", "num_parallel_generation_workers=768"],
            " = 10 groups run at most, so it",
        ),
        (["enabled=true", "num_parallel_generation_workers=10"], None),
        (["enabled=true", "max_staleness_steps=2"], None),
    ],
)
def test_a_setting_of_generation_ahead_that_changes_nothing_is_told(
    words: list[str], told: str | None
) -> None:
    unread = plan(*(f"{AHEAD}.{word}" for word in words)).config.not_read
    assert [answer.name for answer in unread] == [f"{AHEAD}.{words[-1].partition('=')[0]}"] * bool(
        told
    )
    assert all(told in str(answer) for answer in unread)


@pytest.mark.parametrize("word", ["top_p=0.9", "top_k=5", "min_p=0.1"])
def test_truncated_sampling_is_refused_in_training_and_allowed_in_evaluation(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampling_params\.{word.partition('=')[0]} truncates"):
        plan(f"generator.sampling_params.{word}")
    plan(f"generator.eval_sampling_params.{word}")


def test_a_section_of_an_unselected_plugin_is_refused_and_of_a_selected_one_read() -> None:
    with pytest.raises(ConfigError, match=r"'environment\.multiply\.num_digits'.*add --plugin mul"):
        plan("environment.multiply.num_digits=2x2")
    made = plan("environment.scripted.max_turns=3")
    assert made.config.tree["environment"]["scripted"]["max_turns"] == 3


def test_data_sets_and_models_by_name_select_their_plugins() -> None:
    made = plan("data.val_data=['dice:validation']")
    assert names(made, ENVS) == {"scripted", "dice"}
    assert "scripted" in names(made, PLUGINS)  # of trainer.policy.model.path=scripted:model


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("builtin:tiny", "builtin"),
        ("multiply:train", "multiply"),
        ("Qwen/Qwen3-0.6B", None),
        ("data/train.parquet", None),
        ("https://example.org/model", None),
        ("C:\\models\\tiny", None),
        ("C:/models/tiny", None),
        ("name:", None),
    ],
)
def test_names_are_told_from_paths_and_addresses(text: str, name: str | None) -> None:
    assert named_source(text) == name


def test_a_file_with_a_colon_in_its_name_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("multiply:train").touch()
    assert named_source("multiply:train") is None


def test_planning_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan()
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_preset_is_no_name_for_a_slot() -> None:
    key = "trainer.algorithm.advantage_estimator"
    with pytest.raises(PluginSelectionError) as caught:
        plan(f"{key}=dr_grpo")
    assert str(caught.value) == (
        f"{key}=dr_grpo: 'dr_grpo' is no name for this key but a preset, which sets it to grpo; "
        f"use --plugin dr_grpo for all that it sets, or {key}=grpo for this alone"
    )


def test_where_an_algorithm_leaves_open_what_it_reads_nothing_is_said() -> None:
    words = ("trainer.algorithm.gamma=0.5", "trainer.algorithm.entropy_loss_coef=0.5")
    assert plan(*words).notes == []
