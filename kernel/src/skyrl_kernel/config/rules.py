"""Which settings contradict each other, SkyRL's keys that are not read included.

So a launch script is checked as a whole, also for what is not built yet. Rules
between keys that are read are validators of their sections.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from skyrl_kernel.config.compat import Answer, shown
from skyrl_kernel.config.generator import NO_ENGINE
from skyrl_kernel.config.layers import Layers

Asked = Callable[[str], Any]
"""Key → what was asked for, defaults included."""
Rule = Callable[[Asked], Iterator[str]]

PLACEMENT = "trainer.placement"
ENGINE = "generator.inference_engine"
POLICY = "trainer.policy"
ALGORITHM = "trainer.algorithm"
CORRECTION = f"{ALGORITHM}.off_policy_correction"
AHEAD = "trainer.fully_async"


def broken_rules(layers: Layers) -> list[str]:
    """A sentence for each rule that what was asked for breaks."""
    return [message for rule in RULES for message in rule(layers.asked)]


def is_missed(answer: Answer, layers: Layers) -> bool:
    """True if a key that is not read asks for something that is missing.

    Raises:
        ValueError: Its value is of the wrong type.
    """
    row, key = answer.row, answer.name
    value = row.typed(key, answer.value)
    if row.accepts != "default":
        return row.accepts == "none"
    return value != row.default_of(key) and (not row.switch or is_on(row.switch, layers))


def is_on(switch: str, layers: Layers) -> bool:
    """True if ``KEY=NAME|NAME`` holds; for ``KEY``, if it is not at its default."""
    key, _, names = switch.partition("=")
    value = layers.asked(key)
    if names:
        return shown(value) in names.split("|")
    return bool(value != Layers({}, {}).asked(key))


# --- one value ------------------------------------------------------------------------------------

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "trainer.sequence_parallel_backend": ("ulysses",),
    "trainer.fused_lm_head_logprob_backend": ("torch", "triton"),
    f"{ALGORITHM}.kl_ctrl.type": ("fixed", "adaptive"),
    f"{ALGORITHM}.cispo.cispo_anchor": ("old", "rollout"),
    f"{ALGORITHM}.dppo.dppo_type": ("binary_tv", "binary_kl"),
    f"{CORRECTION}.tis_ratio_type": (None, "token", "sequence"),
    f"{CORRECTION}.sequence_mask_metric": (None, "product", "geometric"),
    f"{POLICY}.torch_profiler_config.export_type": ("chrome_trace", "stacks"),
}
"""Key → the values that it may have."""

BOUNDS: Mapping[str, int] = {
    "data.dataloader.num_workers": 0,
    "trainer.critic_mini_batch_size": 1,
    "trainer.logprobs_chunk_size": 1,
    "trainer.vocab_entropy_chunk_size": 0,
    "trainer.vocab_entropy_chunk_memory_mb": 1,
    "trainer.mtp.num_speculative_tokens": 1,
    f"{ENGINE}.num_engines": 1,
    f"{ENGINE}.tensor_parallel_size": 1,
    f"{ENGINE}.pipeline_parallel_size": 1,
    f"{ENGINE}.data_parallel_size": 1,
    f"{ENGINE}.expert_parallel_size": 1,
    **{
        f"{PLACEMENT}.{role}_{what}": 1
        for role in ("policy", "critic", "ref")
        for what in ("num_nodes", "num_gpus_per_node")
    },
}
"""Key → its least value."""


def _values(asked: Asked) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = asked(key)
        if value not in choices:
            yield f"{key}={shown(value)}: it may be {' or '.join(map(shown, choices))}"
    for key, least in BOUNDS.items():
        value = asked(key)
        if isinstance(value, int) and value < least:
            yield f"{key}={value}: it is at least {least}"


# --- data and batches -----------------------------------------------------------------------------


def _loader(asked: Asked) -> Iterator[str]:
    if asked("data.dataloader.persistent_workers") and asked("data.dataloader.num_workers") == 0:
        yield (
            "data.dataloader.persistent_workers=true keeps workers that data.dataloader.num_workers=0 "
            "never starts; leave one of them out"
        )


def _rows_for_all_ranks(asked: Asked) -> Iterator[str]:
    ranks = {
        role: gpus_of(asked, ranks_with(asked, role)) // _ranks_per_copy(asked, role)
        for role in _trained_roles(asked)
    }
    if 0 in ranks.values():
        return  # `_copies` says so
    needed = math.lcm(*ranks.values())
    prompts, samples = asked("trainer.train_batch_size"), asked("generator.n_samples_per_prompt")
    if are_numbers(prompts, samples) and prompts * samples < needed:
        yield (
            f"a step has trainer.train_batch_size={prompts} × generator.n_samples_per_prompt={samples} "
            f"trajectories, which cannot be shared by {needed} ranks "
            f"({', '.join(f'{role}: {count}' for role, count in ranks.items())}); raise one of them, or "
            f"lower {PLACEMENT}.…_num_gpus_per_node"
        )


def _copies(asked: Asked) -> Iterator[str]:
    for role in _trained_roles(asked):
        whose, ranks = ranks_with(asked, role), _ranks_per_copy(asked, role)
        gpus = gpus_of(asked, whose)
        if gpus % ranks:
            keys = " × ".join(_keys_of_copy(asked, role))
            yield (
                f"{keys} = {ranks} asks for a multiple of {ranks} GPUs, and {PLACEMENT}.{whose}_num_nodes "
                f"× {PLACEMENT}.{whose}_num_gpus_per_node is {gpus}: change one of them"
            )


def _same_rows(asked: Asked) -> Iterator[str]:
    """Ranks that compute parts of the policy's rows have the same rows for every model of theirs."""
    policy = asked(f"{POLICY}.sequence_parallel_size")
    for role in ("ref", "critic"):
        if ranks_with(asked, role) == role:
            continue
        size = asked(f"trainer.{role}.sequence_parallel_size")
        if are_numbers(policy, size) and size > 0 and policy % size:
            yield (
                f"trainer.{role}.sequence_parallel_size={size} does not divide "
                f"{POLICY}.sequence_parallel_size={policy}: ranks that compute parts of the policy's rows "
                "have the same rows for every model; set it to a divisor, such as 1"
            )


def _spread(asked: Asked) -> Iterator[str]:
    """Copies of the weights are on equally many ranks."""
    if asked("trainer.strategy") == "megatron":
        return
    for role in _trained_roles(asked):
        key = f"trainer.{role}.fsdp_config.fsdp_size"
        size = asked(key)
        ranks = gpus_of(asked, ranks_with(asked, role))
        if are_numbers(size) and size != -1 and (size < 1 or ranks % size):
            yield (
                f"{key}={size} does not divide the {ranks} ranks that have the model; set it to a divisor, "
                "or to -1 for one copy of the weights over all of them"
            )


def _trained_roles(asked: Asked) -> list[str]:
    """Roles of this run that have GPUs."""
    roles = ["policy"]
    if asked(f"{ALGORITHM}.use_kl_loss") is True or asked(f"{ALGORITHM}.use_kl_in_reward"):
        roles.append("ref")
    if asked("trainer.critic.model.path") or asked(f"{ALGORITHM}.advantage_estimator") == "gae":
        roles.append("critic")
    return roles


def ranks_with(asked: Asked, role: str) -> str:
    """Whose ranks have the model of a role: its own, or the policy's."""
    keys = ("colocate_all", "colocate_policy_ref") if role == "ref" else ("colocate_all",)
    return "policy" if any(asked(f"{PLACEMENT}.{key}") for key in keys) else role


def gpus_of(asked: Asked, role: str) -> int:
    """How many devices, and so ranks, a role has where it has its own; of the policy, all of its."""
    return _product(
        asked, *(f"{PLACEMENT}.{role}_{of}" for of in ("num_nodes", "num_gpus_per_node"))
    )


def _ranks_per_copy(asked: Asked, role: str) -> int:
    """Ranks that compute the same rows together."""
    return _product(asked, *_keys_of_copy(asked, role))


def _keys_of_copy(asked: Asked, role: str) -> list[str]:
    if asked("trainer.strategy") != "megatron" or role == "critic":
        return [f"trainer.{role}.sequence_parallel_size"]
    parallel = ("tensor_model", "pipeline_model", "context")
    return [f"trainer.{role}.megatron_config.{of}_parallel_size" for of in parallel]


def _product(asked: Asked, *keys: str) -> int:
    """Product of counts; what is no count is refused elsewhere and counts as 1."""
    values = (asked(key) for key in keys)
    return math.prod(value if isinstance(value, int) and value > 0 else 1 for value in values)


def are_numbers(*values: Any) -> bool:
    """True if rules may count with all of them; wrong types are refused elsewhere."""
    return all(isinstance(value, int) for value in values)


# --- placement and engines ------------------------------------------------------------------------


def _colocation(asked: Asked) -> Iterator[str]:
    policy = gpus_of(asked, "policy")
    if asked(f"{PLACEMENT}.colocate_all"):
        if asked(f"{ENGINE}.backend") == NO_ENGINE:
            return
        sizes = [f"{ENGINE}.{of}" for of in ("num_engines", *_PARALLEL)]
        engines = _product(asked, *sizes)
        counts = [asked(f"{PLACEMENT}.policy_{of}") for of in ("num_nodes", "num_gpus_per_node")]
        if policy != engines and are_numbers(*counts, *map(asked, sizes)):
            yield (
                f"{PLACEMENT}.colocate_all=true: the policy has {policy} GPUs (policy_num_nodes × "
                f"policy_num_gpus_per_node) and the engines {engines} ({ENGINE}.num_engines × tensor × "
                "pipeline × data parallel size); they share them: give engines "
                f"their own with {PLACEMENT}.colocate_all=false, or make the two equal"
            )
    elif asked(f"{PLACEMENT}.colocate_policy_ref") and "ref" in _trained_roles(asked):
        for what in ("num_nodes", "num_gpus_per_node"):
            own, ref = (asked(f"{PLACEMENT}.{role}_{what}") for role in ("policy", "ref"))
            if own != ref:
                yield (
                    f"{PLACEMENT}.colocate_policy_ref=true: policy_{what}={own} and ref_{what}={ref}; "
                    "they share their GPUs, so make the two equal"
                )


_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def _external_engines(asked: Asked) -> Iterator[str]:
    keys = (f"{ENGINE}.external_proxy_url", f"{ENGINE}.external_server_urls")
    given = [key for key in keys if asked(key)]
    if not asked(f"{ENGINE}.run_engines_locally") and not given:
        yield (
            f"{ENGINE}.run_engines_locally=false: nothing says where engines run; set {keys[0]} or "
            f"{keys[1]}"
        )
    if asked(f"{ENGINE}.run_engines_locally") and given:
        yield (
            f"{given[0]} names an engine that runs already, and {ENGINE}.run_engines_locally=true starts "
            f"one; set {ENGINE}.run_engines_locally=false, or leave the address out"
        )
    if asked(f"{PLACEMENT}.colocate_all") and given:
        yield (
            f"{given[0]} names an engine that runs elsewhere, which cannot share GPUs with the trainer; "
            f"set {PLACEMENT}.colocate_all=false"
        )


def _engine_parallelism(asked: Asked) -> Iterator[str]:
    experts = asked(f"{ENGINE}.expert_parallel_size")
    tensor, data = (asked(f"{ENGINE}.{of}_parallel_size") for of in ("tensor", "data"))
    if are_numbers(experts, tensor, data) and experts > 1 and experts != tensor * data:
        yield (
            f"{ENGINE}.expert_parallel_size={experts} is not tensor_parallel_size={tensor} × "
            f"data_parallel_size={data}; experts are spread over exactly these ranks"
        )
    engines, prefill = asked(f"{ENGINE}.num_engines"), asked(f"{ENGINE}.num_prefill")
    if asked(f"{ENGINE}.enable_pd") and are_numbers(engines, prefill) and not 0 < prefill < engines:
        yield (
            f"{ENGINE}.enable_pd=true: num_prefill={prefill} of num_engines={engines} leaves no engine "
            "to prefill or none to decode; set it from 1 to one less than num_engines"
        )


def _weight_sync(asked: Asked) -> Iterator[str]:
    is_delta = asked(f"{ENGINE}.weight_sync_backend") == "delta"
    is_lora = (asked(f"{POLICY}.model.lora.rank") or 0) > 0
    if is_delta and is_lora:
        yield (
            f"{ENGINE}.weight_sync_backend=delta sends changes of all weights, and "
            f"{POLICY}.model.lora.rank > 0 trains adapters; choose nccl, or rank 0"
        )
    if is_delta and not asked(f"{ENGINE}.delta_weight_sync.sync_dir"):
        yield (
            f"{ENGINE}.weight_sync_backend=delta: set {ENGINE}.delta_weight_sync.sync_dir, the folder "
            "that trainer and engines share"
        )
    if asked(f"{ENGINE}.offload_kv_for_weight_sync"):
        for is_so, what in (
            (asked(f"{PLACEMENT}.colocate_all"), f"{PLACEMENT}.colocate_all=true"),
            (is_lora, f"{POLICY}.model.lora.rank > 0"),
            (is_delta, f"{ENGINE}.weight_sync_backend=delta"),
        ):
            if is_so:
                yield f"{ENGINE}.offload_kv_for_weight_sync=true does not go with {what}"


# --- models ---------------------------------------------------------------------------------------


def _megatron(asked: Asked) -> Iterator[str]:
    is_megatron = asked("trainer.strategy") == "megatron"
    if is_megatron and asked("trainer.critic.model.path"):
        yield (
            "trainer.strategy=megatron trains no critic; leave out trainer.critic.model.path, or use "
            "trainer.strategy=fsdp"
        )
    for role in ("policy", "ref"):
        if is_megatron and asked(f"trainer.{role}.sequence_parallel_size") != 1:
            yield (
                f"trainer.{role}.sequence_parallel_size is fsdp's; with trainer.strategy=megatron use "
                f"trainer.{role}.megatron_config.context_parallel_size"
            )
    if not is_megatron and asked("trainer.fused_lm_head_logprob"):
        yield "trainer.fused_lm_head_logprob=true needs trainer.strategy=megatron"


def _experts(asked: Asked) -> Iterator[str]:
    returns = f"{ENGINE}.enable_return_routed_experts"
    replays = f"{POLICY}.megatron_config.moe_enable_routing_replay"
    if asked(returns):
        for key, needed in (
            (f"{ENGINE}.distributed_executor_backend", "mp"),
            ("trainer.strategy", "megatron"),
            (replays, True),
        ):
            if asked(key) != needed:
                yield f"{returns}=true needs {key}={shown(needed)}; found {shown(asked(key))}"
    elif asked(replays):
        yield f"{replays}=true needs {returns}=true: there is nothing else to replay"


def _int4(asked: Asked) -> Iterator[str]:
    key = f"{POLICY}.model.fake_int4_qat.enabled"
    if not asked(key):
        return
    merges = f"{POLICY}.megatron_config.lora_config.merge_lora"
    if not asked(f"{POLICY}.model.lora.rank"):
        yield f"{key}=true needs {POLICY}.model.lora.rank > 0"
    if asked("trainer.strategy") != "megatron":
        yield f"{key}=true needs trainer.strategy=megatron"
    if asked(merges):
        yield f"{key}=true needs {merges}=false: the engine keeps its quantised weights"


def _rope(asked: Asked) -> Iterator[str]:
    kwargs = f"{ENGINE}.engine_init_kwargs"
    for key in (
        *(f"{kwargs}.rope_{what}" for what in ("scaling", "theta", "parameters")),
        *(f"{kwargs}.hf_overrides.rope_{what}" for what in ("scaling", "theta")),
    ):
        if asked(key) is not None:
            yield (
                f"{key}: SkyRL has replaced it by rope_parameters in {POLICY}.model_config_kwargs, and in "
                f"{kwargs}.hf_overrides for the engine"
            )
    engine = f"{kwargs}.hf_overrides.rope_parameters"
    trainer = f"{POLICY}.model_config_kwargs.rope_parameters"
    if asked("trainer.strategy") == "megatron":
        trainer = f"{POLICY}.megatron_config.transformer_config_kwargs.rope_parameters"
    if asked(engine) is not None and asked(engine) != asked(trainer):
        yield (
            f"{engine} and {trainer} differ, so engine and trainer would compute with other positions; "
            "set both to the same"
        )


def _profiler(asked: Asked) -> Iterator[str]:
    profiler = f"{POLICY}.torch_profiler_config"
    if not asked(f"{profiler}.enable"):
        return
    if not asked(f"{profiler}.save_path"):
        yield f"{profiler}.enable=true: set {profiler}.save_path, the folder of the traces"
    shares = any(asked(f"{PLACEMENT}.{what}") for what in ("colocate_all", "colocate_policy_ref"))
    offloads = f"{POLICY}.fsdp_config.cpu_offload"
    if asked("trainer.strategy") == "fsdp" and shares and not asked(offloads):
        yield (
            f"{profiler}.enable=true holds on to weights that colocated training moves away; set "
            f"{offloads}=true, or {PLACEMENT}.colocate_all and {PLACEMENT}.colocate_policy_ref to false"
        )


# --- algorithms -----------------------------------------------------------------------------------


def _kl(asked: Asked) -> Iterator[str]:
    in_reward, in_loss = f"{ALGORITHM}.use_kl_in_reward", f"{ALGORITHM}.use_kl_loss"
    if asked(in_reward) and asked(in_loss) is True:
        yield (
            f"{in_reward}=true and {in_loss}=true take the KL twice; set one of them to false "
            f"({in_loss} is true unless it is set)"
        )


def _estimator(asked: Asked) -> Iterator[str]:
    name = asked(f"{ALGORITHM}.advantage_estimator")
    if name in ("gae", "reinforce++") and asked("generator.step_wise_trajectories"):
        yield (
            f"generator.step_wise_trajectories=true gives every turn its trajectory's advantage, and "
            f"{ALGORITHM}.advantage_estimator={name} gives each token its own; use grpo, rloo or maxrl"
        )


_CORRECTIONS = (
    "tis_ratio_type",
    "sequence_mask_metric",
    *(
        f"{what}_is_threshold_{side}"
        for what in ("outlier_token", "token_mask")
        for side in ("low", "high")
    ),
)
"""Keys that switch a correction on."""


def _correction(asked: Asked) -> Iterator[str]:
    loss, tis = asked(f"{ALGORITHM}.policy_loss_type"), asked(f"{CORRECTION}.tis_ratio_type")
    used = [key for key in _CORRECTIONS if asked(f"{CORRECTION}.{key}") is not None]
    if used and loss in ("clip_cov", "kl_cov"):
        yield (
            f"{CORRECTION} does not go with {ALGORITHM}.policy_loss_type={loss}, whose covariances are "
            f"of all tokens; leave out {' and '.join(used)}"
        )
    if (
        loss == "cispo"
        and tis is not None
        and asked(f"{ALGORITHM}.cispo.cispo_anchor") == "rollout"
    ):
        yield (
            f"{CORRECTION}.tis_ratio_type={tis} and {ALGORITHM}.cispo.cispo_anchor=rollout double-count "
            "the ratio to the sampler; leave one of them out"
        )
    low, high = (asked(f"{CORRECTION}.token_mask_is_threshold_{side}") for side in ("low", "high"))
    if (low is None) != (high is None):
        yield (
            f"{CORRECTION}.token_mask_is_threshold_low and token_mask_is_threshold_high come together: "
            "set both or neither"
        )


RULES: tuple[Rule, ...] = (
    _values,
    _loader,
    _copies,
    _spread,
    _same_rows,
    _rows_for_all_ranks,
    _colocation,
    _external_engines,
    _engine_parallelism,
    _weight_sync,
    _megatron,
    _experts,
    _int4,
    _rope,
    _profiler,
    _kl,
    _estimator,
    _correction,
)
