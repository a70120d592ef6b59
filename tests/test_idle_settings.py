"""A setting that changes nothing is told of, and what is told is true: the plugins are watched."""

from pathlib import Path
from typing import Any

import pytest
from running import skyrl

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.config.section import Section
from skyrl_kernel.errors import CapabilityError, ConfigError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.slots import ALGORITHMS
from skyrl_kernel.testing.distributions import make_distribution, on_path

ALGORITHM = "trainer.algorithm"
PLACEMENT = "trainer.placement"
OTHER_VALUES = {
    "gamma": 0.5,
    "lambd": 0.5,
    "grpo_norm_by_std": False,
    "eps_clip_low": 0.1,
    "eps_clip_high": 0.1,
    "clip_ratio_c": 5.0,
}
"""Keys that estimators and losses read, or do not."""
HOOKS = {"advantage": f"{ALGORITHM}.advantage_estimator", "loss": f"{ALGORITHM}.policy_loss_type"}
READ_LATER = {"clip_cov": {"eps_clip_low", "eps_clip_high"}}
"""By the loss itself, not by the hook."""
NAMES = [
    (hook, entry.name)
    for entry in discover()
    for hook, key in HOOKS.items()
    if key in entry.manifest.slots and entry.distribution.startswith("skyrl-")
]


class Watched:
    """Settings that remember which keys of the algorithm were read."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self.read: set[str] = set()

    def __getitem__(self, section: type[Section]) -> Any:
        found = self._settings[section]
        return _Watched(found, self.read) if section is AlgorithmConfig else found


class _Watched:
    def __init__(self, section: Section, read: set[str]) -> None:
        self._section, self._read = section, read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._section, name)


@pytest.mark.parametrize(("hook", "name"), NAMES)
def test_a_key_is_called_idle_where_the_plugin_does_not_read_it(hook: str, name: str) -> None:
    words = [f"{HOOKS[hook]}={name}", "trainer.teacher.model.path=builtin:tiny"]
    words += [f"{ALGORITHM}.{key}={value}" for key, value in OTHER_VALUES.items()]
    plan = make_plan(["dpo" if name == "dpo" else "demo"], overrides=words)
    settings = Watched(plan.config)
    plan.manager.resolve(hook, name, name=name, settings=settings)
    idle = {answer.name.removeprefix(f"{ALGORITHM}.") for answer in plan.config.not_read}
    if hook == "advantage":
        decided = {"gamma", "lambd", "grpo_norm_by_std"}
    else:
        decided = {"eps_clip_low", "eps_clip_high", "clip_ratio_c"}
    assert idle & decided == decided - settings.read - READ_LATER.get(name, set())


def test_a_run_says_which_of_its_settings_change_nothing() -> None:
    words = ("trainer.algorithm.gamma=0.9", "trainer.algorithm.kl_ctrl.horizon=5")
    note = make_plan(["demo"], overrides=words).notes[0]
    assert note == f"not read here: {', '.join(words)}; --dry-run says why"
    shown = skyrl("run", "--plugin", "demo", "--dry-run", *words).out
    assert f"{words[0]} (command line): read by gae, reinforce++" in shown


@pytest.mark.parametrize(
    ("word", "with_it"),
    [
        ("trainer.critic.model.path=builtin:tiny", f"{ALGORITHM}.advantage_estimator=gae"),
        (
            "trainer.teacher.model.path=builtin:tiny",
            f"{ALGORITHM}.advantage_estimator=distillation",
        ),
        ("trainer.ref.model.path=builtin:tiny", f"{ALGORITHM}.use_kl_loss=true"),
        (f"{ALGORITHM}.kl_loss_coef=0.5", f"{ALGORITHM}.use_kl_in_reward=true"),
        (f"{ALGORITHM}.kl_ctrl.type=adaptive", f"{ALGORITHM}.use_kl_in_reward=true"),
        (f"{ALGORITHM}.max_seq_len=9", f"{ALGORITHM}.loss_reduction=seq_mean_token_sum_norm"),
        (f"{ALGORITHM}.entropy_loss_coef=0.5", f"{ALGORITHM}.use_entropy_loss=true"),
        (f"{ALGORITHM}.zero_variance_filter_tol=0.5", f"{ALGORITHM}.zero_variance_filter=true"),
        (f"{ALGORITHM}.zero_variance_filter_tol=0.5", f"{ALGORITHM}.dynamic_sampling.type=filter"),
        (
            f"{ALGORITHM}.dynamic_sampling.min_replace_ratio=0.5",
            f"{ALGORITHM}.dynamic_sampling.type=replace",
        ),
        (f"{ALGORITHM}.overlong_buffer_penalty_factor=2", f"{ALGORITHM}.overlong_buffer_len=auto"),
        (
            "trainer.policy.fsdp_config.reshard_after_forward=false",
            "trainer.policy.fsdp_config.cpu_offload=true",
        ),
    ],
)
def test_what_a_setting_needs_makes_it_read(word: str, with_it: str) -> None:
    key = word.partition("=")[0]

    def idle(*words: str) -> bool:
        plan = make_plan(["demo"], overrides=words)
        return key in {answer.name for answer in plan.config.not_read}

    assert idle(word)
    assert not idle(word, with_it)


@pytest.mark.parametrize("word", ["warn_above=0.5", "stop_above=0.5", "stop_above=null"])
def test_bounds_on_log_probs_change_nothing_where_an_engine_returns_none(word: str) -> None:
    def why(plugin: str, *more: str) -> str | None:
        plan = make_plan([plugin], overrides=[f"trainer.logprobs_diff.{word}", *more])
        found = {one.name: one.row.text for one in plan.config.not_read}
        return found.get(f"trainer.logprobs_diff.{word.partition('=')[0]}")

    assert why("demo") is None
    assert why("demo", "generator.sampling_params.logprobs=0") is None
    unasked = why("demo", "generator.sampling_params.logprobs=null")
    assert str(unasked).endswith("generator.sampling_params.logprobs=null asks for none")
    assert why("sft") == "of what an engine samples, and this run has none"


REF_GPUS = f"{PLACEMENT}.ref_num_gpus_per_node=2"
APART = [f"{PLACEMENT}.colocate_all=false", f"{PLACEMENT}.colocate_policy_ref=false"]
KL = f"{ALGORITHM}.use_kl_loss=true"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([KL], id="colocated"),
        pytest.param([KL, APART[0], REF_GPUS.replace("ref", "policy")], id="with-the-policy"),
        pytest.param(APART, id="no-reference"),
    ],
)
def test_gpus_of_a_reference_without_its_own_change_nothing(words: list[str]) -> None:
    plan = make_plan(["demo"], overrides=[REF_GPUS, "trainer.runtime=ray", *words])
    assert REF_GPUS.partition("=")[0] in {one.name for one in plan.config.not_read}


def test_gpus_of_a_reference_alone_ask_for_processes() -> None:
    assert make_plan(["demo"], overrides=[REF_GPUS, KL]).tree.trainer.runtime == "local"
    plan = make_plan(["demo"], overrides=[REF_GPUS, KL, *APART])
    assert plan.tree.trainer.runtime == "ray"
    assert REF_GPUS.partition("=")[0] not in {one.name for one in plan.config.not_read}


CRITIC_GPUS = f"{PLACEMENT}.critic_num_gpus_per_node=2"
GAE = f"{ALGORITHM}.advantage_estimator=gae"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param([GAE], "with true the critic is where the policy is", id="colocated"),
        pytest.param(APART, "of a critic, which no stage asks for", id="no-critic"),
    ],
)
def test_gpus_of_a_critic_without_its_own_change_nothing(words: list[str], why: str) -> None:
    plan = make_plan(["demo"], overrides=[CRITIC_GPUS, "trainer.runtime=ray", *words])
    (found,) = (one for one in plan.config.not_read if one.name == CRITIC_GPUS.partition("=")[0])
    assert why in str(found)


def test_gpus_of_a_critic_alone_ask_for_processes() -> None:
    assert make_plan(["demo"], overrides=[CRITIC_GPUS, GAE]).tree.trainer.runtime == "local"
    plan = make_plan(["demo"], overrides=[CRITIC_GPUS, GAE, APART[0]])
    assert plan.tree.trainer.runtime == "ray"
    assert CRITIC_GPUS.partition("=")[0] not in {one.name for one in plan.config.not_read}
    served = "generator.inference_engine.backend=vllm"
    with pytest.raises(
        CapabilityError, match=r"critic_num_gpus_per_node = 2 ranks needs 'separate"
    ):
        make_plan(["demo"], overrides=[CRITIC_GPUS, GAE, *APART, served, "trainer.runtime=local"])


@pytest.mark.parametrize(
    ("words", "who"),
    [pytest.param([GAE], "critic", id="critic"), pytest.param([KL], "reference", id="reference")],
)
def test_a_model_of_one_rank_of_its_own_asks_for_a_process(words: list[str], who: str) -> None:
    assert make_plan(["demo"], overrides=words).tree.trainer.runtime == "local"
    plan = make_plan(["demo"], overrides=[*words, *APART])
    assert plan.tree.trainer.runtime == "ray"
    told = f"auto, for a {who} of its own, trainer.placement.colocate_all=false"
    assert plan.config.origins["trainer.runtime"] == told


@pytest.mark.parametrize("key", [CRITIC_GPUS, REF_GPUS])
def test_gpus_of_a_model_that_nobody_asks_for_ask_for_nothing(key: str) -> None:
    """And their number is told as one that is not read."""
    served = "generator.inference_engine.backend=vllm"
    for runtime in ([], ["trainer.runtime=local"]):
        plan = make_plan(["demo"], overrides=[key, served, *APART, *runtime])
        assert plan.tree.trainer.runtime == "local"
        assert key.partition("=")[0] in {one.name for one in plan.config.not_read}


def test_an_engine_in_the_trainers_process_has_no_device_of_its_own() -> None:
    with pytest.raises(
        CapabilityError, match=r"colocate_all=false with trainer\.runtime=local needs 'served'"
    ):
        make_plan(["demo"], overrides=APART)


RANKS = f"{PLACEMENT}.{{}}_num_gpus_per_node=2"
COPIES = "trainer.{}.fsdp_config.fsdp_size=1"
TEACHER = [
    f"{ALGORITHM}.advantage_estimator=distillation",
    "trainer.teacher.model.path=builtin:tiny",
]


WITH_ENGINES = [RANKS.format("policy"), "generator.inference_engine.num_engines=2"]


@pytest.mark.parametrize(
    ("role", "words", "more"),
    [
        pytest.param("policy", [], WITH_ENGINES, id="policy"),
        pytest.param("critic", [GAE, RANKS.format("critic")], WITH_ENGINES, id="critic-colocated"),
        pytest.param("critic", [GAE, APART[0]], [RANKS.format("critic")], id="critic-apart"),
        pytest.param(
            "critic",
            [GAE, APART[0], RANKS.format("policy")],
            [RANKS.format("critic")],
            id="critic-apart-from-two",
        ),
        pytest.param("ref", [KL], [*WITH_ENGINES, RANKS.format("ref")], id="reference-colocated"),
        pytest.param("ref", [KL, *APART], [RANKS.format("ref")], id="reference-apart"),
        pytest.param(
            "ref",
            [KL, *APART, RANKS.format("policy")],
            [RANKS.format("ref")],
            id="reference-apart-from-two",
        ),
    ],
)
def test_how_weights_are_spread_changes_nothing_where_one_rank_has_them(
    role: str, words: list[str], more: list[str]
) -> None:
    copies = COPIES.format(role)

    def why(*others: str) -> str | None:
        plan = make_plan(["demo"], overrides=[copies, "trainer.runtime=ray", *words, *others])
        found = {one.name: one.row.text for one in plan.config.not_read}
        return found.get(copies.partition("=")[0])

    key = more[0].partition("=")[0]
    assert str(why()).endswith(f"there is one: {key} above 1 makes more")
    assert why(*more) is None
    assert why(f"trainer.{role}.fsdp_config.cpu_offload=true") is None


def test_a_teacher_is_spread_over_the_policys_ranks_as_a_reference_would_be() -> None:
    copies = COPIES.format("ref")
    words = [copies, *TEACHER, *APART, "trainer.runtime=ray"]
    for ranks, is_idle in (([], True), ([RANKS.format("policy")], False)):
        plan = make_plan(["demo"], overrides=[*words, *ranks])
        idle = {one.name for one in plan.config.not_read}
        assert (copies.partition("=")[0] in idle) is is_idle


def test_nothing_is_said_of_defaults_presets_and_what_was_asked_for() -> None:
    assert make_plan(["demo", "ppo"]).notes == []
    assert make_plan(["demo"], overrides=["trainer.algorithm.gamma=1.0"]).notes == []
    words = ["trainer.algorithm.overlong_buffer_len=0"]  # the preset's factor has nothing to do
    assert make_plan(["demo", "dapo"], overrides=words).notes == []


def test_mini_batches_of_a_critic_matter_only_where_there_is_one() -> None:
    word = "trainer.critic_mini_batch_size=256"  # as every launch script of SkyRL has it
    assert make_plan(["demo"], overrides=[word]).notes == [
        f"not read here: {word}; --dry-run says why"
    ]
    with pytest.raises(
        ConfigError, match=r"256 is not trainer\.policy_mini_batch_size=16; policy and"
    ):
        make_plan(["demo", "ppo"], overrides=[word])


SILENT = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage

@hookimpl
def advantage(name):
    return Advantage(fn=lambda groups: []) if name == "silent" else None
"""


def test_nothing_is_said_where_an_algorithm_leaves_open_what_it_reads(tmp_path: Path) -> None:
    key = HOOKS["advantage"]
    words = [f"{key}=silent", "trainer.algorithm.gamma=0.9"]
    for reads, notes in (("", 0), ("reads = []", 1)):
        site = tmp_path / str(notes)
        manifest = f'[silent]\nslots = ["{key}"]\n{reads}\n'
        with on_path(site):
            make_distribution(
                site,
                "skyrl-silent",
                modules={"skyrl_silent.hooks": SILENT},
                entry_points={ALGORITHMS: {"silent": "skyrl_silent.hooks"}},
                files={"skyrl_silent/plugin.toml": manifest},
            )
            discover(refresh=True)
            assert len(make_plan(["demo"], overrides=words).notes) == notes
    discover(refresh=True)


@pytest.mark.parametrize(("engine", "is_told"), [("transformers", True), ("vllm", False)])
def test_a_setting_of_engines_is_called_idle_where_the_engine_does_not_read_it(
    engine: str, is_told: bool
) -> None:
    section = "generator.inference_engine"
    words = [f"{section}.backend={engine}", f"{section}.enforce_eager=true"]
    plan = make_plan(["demo"], overrides=words, allow_not_yet=True)
    idle = {answer.name: answer.row.text for answer in plan.config.not_read}
    assert (idle.get(f"{section}.enforce_eager") == "read by vllm") is is_told


ATTACHED = [
    "generator.inference_engine.backend=vllm",
    "generator.inference_engine.run_engines_locally=false",
    "generator.inference_engine.external_server_urls=[http://127.0.0.1:1]",
    "trainer.placement.colocate_all=false",
]


@pytest.mark.parametrize("name", ["engine_init_kwargs.swap_space", "served_model_name"])
def test_how_an_engine_is_started_changes_nothing_where_it_runs_already(name: str) -> None:
    key = f"generator.inference_engine.{name}"
    (answer,) = make_plan(["demo"], overrides=[*ATTACHED, f"{key}=x"]).config.not_read
    assert answer.name == key
    assert "of engines that the run starts; those of" in str(answer)


@pytest.mark.parametrize(("runtime", "is_told"), [("local", True), ("ray", False)])
def test_a_number_of_engines_is_idle_where_neither_engine_nor_runtime_reads_it(
    runtime: str, is_told: bool
) -> None:
    words = ["generator.inference_engine.num_engines=1", "trainer.placement.colocate_all=true"]
    entries = make_plan(["demo"], overrides=[*words, f"trainer.runtime={runtime}"]).entries
    readers = {one.name for one in entries if one.manifest.is_reader(words[0].partition("=")[0])}
    assert (not readers) is is_told


@pytest.mark.parametrize(
    ("engine", "word", "told"),
    [
        ("transformers", "sampling_params.additional_kwargs.min_tokens=3", "takes stop_token_ids,"),
        ("vllm", "sampling_params.additional_kwargs.ignore_eo=true", "Did you mean 'ignore_eos'"),
        ("vllm", "sampling_params.additional_kwargs.min_tokens=3", "eval_sampling_params may have"),
        ("vllm", "eval_sampling_params.additional_kwargs.min_token=3", "mean 'min_tokens'"),
    ],
)
def test_a_sampling_parameter_that_the_engine_does_not_take_is_refused(
    engine: str, word: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        make_plan(
            ["demo"],
            overrides=[f"generator.inference_engine.backend={engine}", f"generator.{word}"],
        )


def test_the_processors_of_a_ray_of_the_runs_own_are_idle_on_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["trainer.runtime=ray", "trainer.ray.num_cpus=8"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not make_plan(["demo"], overrides=words).config.not_read
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    [answer] = make_plan(["demo"], overrides=words).config.not_read
    assert answer.name == "trainer.ray.num_cpus"
    assert "RAY_ADDRESS=10.0.0.1:6379 joins a cluster" in str(answer)
