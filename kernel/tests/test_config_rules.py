"""Settings that contradict each other are refused, those of what is not built yet included."""

import pytest

from skyrl_kernel.config import merge_layers, resolve_config, settle_names
from skyrl_kernel.config.rules import BOUNDS, CHOICES, RULES, broken_rules
from skyrl_kernel.errors import ConfigError

PLACEMENT = "trainer.placement"
ENGINE = "generator.inference_engine"
MODEL = "trainer.policy.model"
ALGORITHM = "trainer.algorithm"
CORRECTION = f"{ALGORITHM}.off_policy_correction"
MEGATRON = "trainer.policy.megatron_config"
PROFILER = "trainer.policy.torch_profiler_config"


def broken(*words: str) -> list[str]:
    return broken_rules(settle_names(merge_layers([], [], words), lambda key, name: False))


def test_the_defaults_break_no_rule() -> None:
    assert broken() == []


def test_ranks_without_an_engine_share_with_none() -> None:
    ranks = f"{PLACEMENT}.policy_num_gpus_per_node=4"
    (found,) = broken(ranks)
    assert "the policy has 4 GPUs" in found
    assert broken(ranks, f"{ENGINE}.backend=none", f"{ALGORITHM}.use_kl_loss=true") == []


GPUS_4 = [f"{PLACEMENT}.policy_num_gpus_per_node=4", f"{ENGINE}.num_engines=4"]
APART = f"{PLACEMENT}.colocate_all=false"

BROKEN = [
    # one value
    (
        ["trainer.sequence_parallel_backend=ring"],
        r"sequence_parallel_backend=ring: it may be ulysses$",
    ),
    (["trainer.fused_lm_head_logprob_backend=c"], r"it may be torch or triton$"),
    ([f"{ALGORITHM}.kl_ctrl.type=loose"], r"it may be fixed or adaptive$"),
    ([f"{ALGORITHM}.cispo.cispo_anchor=bogus"], r"cispo_anchor=bogus: it may be old or rollout$"),
    ([f"{ALGORITHM}.dppo.dppo_type=x"], r"it may be binary_tv or binary_kl$"),
    ([f"{CORRECTION}.tis_ratio_type=x"], r"tis_ratio_type=x: it may be null or token or sequence$"),
    ([f"{CORRECTION}.sequence_mask_metric=x"], r"it may be null or product or geometric$"),
    (["data.dataloader.num_workers=-1"], r"^data\.dataloader\.num_workers=-1: it is at least 0$"),
    (["trainer.logprobs_chunk_size=0"], r"logprobs_chunk_size=0: it is at least 1$"),
    (["trainer.vocab_entropy_chunk_size=-1"], r"it is at least 0$"),
    (["trainer.vocab_entropy_chunk_memory_mb=0"], r"it is at least 1$"),
    (["trainer.critic_mini_batch_size=0"], r"it is at least 1$"),
    (["trainer.mtp.num_speculative_tokens=0"], r"it is at least 1$"),
    # weights over ranks
    (
        [*GPUS_4, "trainer.policy.fsdp_config.fsdp_size=3"],
        r"^trainer\.policy\.fsdp_config\.fsdp_size=3 does not divide the 4 ranks .* or to -1 for one copy",
    ),
    (["trainer.policy.fsdp_config.fsdp_size=0"], r"fsdp_size=0 does not divide the 1 ranks"),
    (
        [
            *(
                *GPUS_4,
                APART,
                f"{PLACEMENT}.colocate_policy_ref=false",
                f"{ALGORITHM}.use_kl_loss=true",
            ),
            *(f"{PLACEMENT}.ref_num_gpus_per_node=2", "trainer.ref.fsdp_config.fsdp_size=4"),
        ],
        r"^trainer\.ref\.fsdp_config\.fsdp_size=4 does not divide the 2 ranks",
    ),
    (
        [
            *(
                APART,
                f"{ALGORITHM}.advantage_estimator=gae",
                "trainer.critic.fsdp_config.fsdp_size=2",
            ),
            f"{PLACEMENT}.critic_num_gpus_per_node=3",
        ],
        r"^trainer\.critic\.fsdp_config\.fsdp_size=2 does not divide the 3 ranks",
    ),
    # data and batches
    (
        ["data.dataloader.persistent_workers=true", "data.dataloader.num_workers=0"],
        r"keeps workers that data\.dataloader\.num_workers=0 never starts",
    ),
    (
        # 2 prompts × 5 samples = 10 trajectories, lcm(4, 3) = 12 ranks
        [
            *(*GPUS_4, APART, f"{PLACEMENT}.colocate_policy_ref=false"),
            f"{PLACEMENT}.ref_num_gpus_per_node=3",
            *("trainer.train_batch_size=2", "trainer.policy_mini_batch_size=2"),
        ],
        r"train_batch_size=2 × .*=5 trajectories, which cannot be shared by 12 ranks \(policy: 4, ref: 3\)",
    ),
    (
        # 2 prompts × 5 samples = 10 trajectories, lcm(4, 3) = 12 ranks
        [
            *(*GPUS_4, APART, f"{ALGORITHM}.advantage_estimator=gae"),
            f"{PLACEMENT}.critic_num_gpus_per_node=3",
            *("trainer.train_batch_size=2", "trainer.policy_mini_batch_size=2"),
        ],
        r"trajectories, which cannot be shared by 12 ranks \(policy: 4, .*critic: 3\)",
    ),
    (
        [
            *(APART, f"{ALGORITHM}.advantage_estimator=gae"),
            *(f"{PLACEMENT}.critic_num_nodes=3", "trainer.critic.sequence_parallel_size=2"),
        ],
        r"critic\.sequence_parallel_size = 2 asks for a multiple of 2 GPUs, .*critic_num_nodes .* is 3: ",
    ),
    (
        ["trainer.policy.sequence_parallel_size=2", "trainer.ref.sequence_parallel_size=4"],
        r"ref\.sequence_parallel_size=4 does not divide trainer\.policy\.sequence_parallel_size=2: ",
    ),
    (
        [*GPUS_4, "trainer.policy.sequence_parallel_size=3"],
        r"trainer\.policy\.sequence_parallel_size = 3 asks for a multiple of 3 GPUs, .*_per_node is 4: ",
    ),
    (
        [*GPUS_4, "trainer.strategy=megatron", f"{MEGATRON}.pipeline_model_parallel_size=8"],
        r"pipeline_model_parallel_size × .* = 8 asks for a multiple of 8 GPUs",
    ),
    # placement and engines
    (
        [f"{PLACEMENT}.policy_num_gpus_per_node=4"],
        r"colocate_all=true: the policy has 4 GPUs .* and the engines 1 .* make the two equal$",
    ),
    (
        [*GPUS_4, f"{ENGINE}.tensor_parallel_size=2"],
        r"the policy has 4 GPUs .* and the engines 8 ",
    ),
    (
        [APART, f"{PLACEMENT}.policy_num_nodes=2"],
        r"colocate_policy_ref=true: policy_num_nodes=2 and ref_num_nodes=1; .* make the two equal",
    ),
    (
        [f"{ENGINE}.run_engines_locally=false"],
        r"nothing says where engines run; set .*external_proxy_url or .*external_server_urls$",
    ),
    (
        [f"{ENGINE}.external_proxy_url=http://x:1"],
        r"cannot share GPUs with the trainer; set trainer\.placement\.colocate_all=false",
    ),
    (
        [f"{ENGINE}.expert_parallel_size=4", f"{ENGINE}.tensor_parallel_size=2", APART],
        r"expert_parallel_size=4 is not tensor_parallel_size=2 × data_parallel_size=1",
    ),
    ([f"{ENGINE}.enable_pd=true"], r"num_prefill=0 of num_engines=1 leaves no engine"),
    (
        [*GPUS_4, f"{ENGINE}.enable_pd=true", f"{ENGINE}.num_prefill=4"],
        r"num_prefill=4 of num_engines=4",
    ),
    (
        [f"{ENGINE}.weight_sync_backend=delta", f"{MODEL}.lora.rank=8"],
        r"delta sends changes of all weights, and .*lora\.rank > 0 trains adapters",
    ),
    ([f"{ENGINE}.weight_sync_backend=delta"], r"set .*delta_weight_sync\.sync_dir"),
    (
        [f"{ENGINE}.offload_kv_for_weight_sync=true"],
        r"does not go with trainer\.placement\.colocate_all=true$",
    ),
    (
        [f"{ENGINE}.offload_kv_for_weight_sync=true", APART, f"{MODEL}.lora.rank=8"],
        r"does not go with .*lora\.rank > 0$",
    ),
    # models
    (
        ["trainer.strategy=megatron", "trainer.critic.model.path=x"],
        r"megatron trains no critic; leave out trainer\.critic\.model\.path",
    ),
    (
        [*GPUS_4, "trainer.strategy=megatron", "trainer.policy.sequence_parallel_size=2"],
        r"sequence_parallel_size is fsdp's; .* use trainer\.policy\.megatron_config\.context_parallel",
    ),
    (["trainer.fused_lm_head_logprob=true"], r"needs trainer\.strategy=megatron$"),
    (
        [
            f"{ENGINE}.enable_return_routed_experts=true",
            f"{ENGINE}.distributed_executor_backend=ray",
        ],
        r"needs generator\.inference_engine\.distributed_executor_backend=mp; found ray$",
    ),
    (
        [
            *("trainer.strategy=megatron", f"{ENGINE}.distributed_executor_backend=mp"),
            f"{ENGINE}.enable_return_routed_experts=true",
        ],
        r"needs trainer\.policy\.megatron_config\.moe_enable_routing_replay=true; found false$",
    ),
    (
        ["trainer.strategy=megatron", f"{MEGATRON}.moe_enable_routing_replay=true"],
        r"needs .*enable_return_routed_experts=true: there is nothing else to replay$",
    ),
    ([f"{MODEL}.fake_int4_qat.enabled=true"], r"needs trainer\.policy\.model\.lora\.rank > 0"),
    ([f"{MODEL}.fake_int4_qat.enabled=true"], r"needs trainer\.strategy=megatron"),
    ([f"{MODEL}.fake_int4_qat.enabled=true"], r"needs .*merge_lora=false"),
    (
        [f"{ENGINE}.engine_init_kwargs.hf_overrides.rope_parameters.rope_theta=1000"],
        r"rope_parameters and trainer\.policy\.model_config_kwargs\.rope_parameters differ",
    ),
    ([f"{PROFILER}.enable=true"], r"set trainer\.policy\.torch_profiler_config\.save_path"),
    (
        [f"{PROFILER}.enable=true", f"{PROFILER}.save_path=/x"],
        r"holds on to weights that colocated training moves away",
    ),
    # algorithms
    ([f"{ALGORITHM}.use_kl_in_reward=true"], r"take the KL twice; .* is true unless it is set"),
    (
        [f"{ALGORITHM}.advantage_estimator=reinforce++", "generator.step_wise_trajectories=true"],
        r"reinforce\+\+ gives each token its own; use grpo, rloo or maxrl$",
    ),
    (
        [f"{ALGORITHM}.policy_loss_type=kl_cov", f"{CORRECTION}.tis_ratio_type=token"],
        r"does not go with trainer\.algorithm\.policy_loss_type=kl_cov.*; leave out tis_ratio_type$",
    ),
    (  # which SkyRL accepts and does not apply
        [
            f"{ALGORITHM}.policy_loss_type=clip_cov",
            f"{CORRECTION}.outlier_token_is_threshold_high=100",
        ],
        r"policy_loss_type=clip_cov.*; leave out outlier_token_is_threshold_high$",
    ),
    (
        [
            *(f"{ALGORITHM}.policy_loss_type=cispo", f"{ALGORITHM}.cispo.cispo_anchor=rollout"),
            f"{CORRECTION}.tis_ratio_type=sequence",
        ],
        r"double-count the ratio to the sampler",
    ),
    ([f"{CORRECTION}.token_mask_is_threshold_low=0.5"], r"come together: set both or neither$"),
]


@pytest.mark.parametrize(("words", "message"), BROKEN, ids=lambda one: str(one)[:60])
def test_settings_that_contradict_each_other_are_refused(words: list[str], message: str) -> None:
    layers = settle_names(merge_layers([], [], words), lambda key, name: False)
    with pytest.raises(ConfigError, match=rf"(?m){message}"):
        resolve_config(layers, {}, {}, allow_not_yet=True)


def test_every_choice_and_every_rule_is_tried() -> None:
    tried = [words[0] for words, _ in BROKEN if len(words) == 1]
    spared = (PLACEMENT, f"{ENGINE}.", f"{MODEL}.lora", PROFILER)
    for key in [*CHOICES, *(key for key in BOUNDS if not key.startswith(spared))]:
        assert any(word.startswith(f"{key}=") for word in tried) or key.startswith(PROFILER), key
    silent = set(RULES)
    for words, _ in BROKEN:
        layers = settle_names(merge_layers([], [], words), lambda key, name: False)
        silent -= {rule for rule in silent if list(rule(layers.asked))}
    assert not silent


@pytest.mark.parametrize(
    "words",
    [
        GPUS_4,
        [f"{PLACEMENT}.policy_num_nodes=2", f"{ENGINE}.num_engines=2"],
        # 8 GPUs: two engines of 2 × 2 ranks
        [
            *(f"{PLACEMENT}.policy_num_gpus_per_node=8", f"{ENGINE}.num_engines=2"),
            *(f"{ENGINE}.tensor_parallel_size=2", f"{ENGINE}.data_parallel_size=2"),
            f"{ENGINE}.expert_parallel_size=4",
        ],
        [*GPUS_4, f"{ENGINE}.enable_pd=true", f"{ENGINE}.num_prefill=1"],
        [*GPUS_4, "trainer.strategy=megatron", f"{MEGATRON}.pipeline_model_parallel_size=2"],
        [f"{ENGINE}.run_engines_locally=false", f"{ENGINE}.external_proxy_url=http://x:1", APART],
        [f"{ALGORITHM}.use_kl_in_reward=true", f"{ALGORITHM}.use_kl_loss=false"],
        [f"{ALGORITHM}.advantage_estimator=gae"],
        [f"{ALGORITHM}.loss_reduction=seq_mean_token_sum_norm"],
        [
            f"{ENGINE}.engine_init_kwargs.hf_overrides.rope_parameters={{rope_theta: 9}}",
            "trainer.policy.model_config_kwargs.rope_parameters={rope_theta: 9}",
        ],
        [f"{CORRECTION}.token_mask_is_threshold_{side}=0.5" for side in ("low", "high")],
        [f"{MODEL}.lora.rank=8", f"{ENGINE}.weight_sync_backend=nccl"],
    ],
    ids=lambda words: words[0],
)
def test_settings_that_go_together_are_accepted(words: list[str]) -> None:
    assert broken(*words) == []


def test_what_is_of_the_wrong_type_is_said_instead_of_a_rule() -> None:
    words = [f"{PLACEMENT}.policy_num_gpus_per_node=four", f"{ENGINE}.num_engines=2"]
    layers = merge_layers([], [], words)
    with pytest.raises(ConfigError) as caught:
        resolve_config(layers, {}, {}, allow_not_yet=True)
    assert "\n" not in str(caught.value)
    assert "policy_num_gpus_per_node='four' (command line): input should be a valid integer" in str(
        caught.value
    )
