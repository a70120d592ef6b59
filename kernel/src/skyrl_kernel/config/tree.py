"""The kernel's config: every key that more than one plugin, or the kernel itself, reads.

Names are SkyRL's where SkyRL has the key. Defaults are SkyRL's too, except for
those that a laptop cannot run or that surprise; each of these says so in its
description, and docs/reference/config.md lists them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(Section):
    """``data``: what is trained on and what is held out."""

    train_data: list[str] = Field(default_factory=lambda: ["~/data/gsm8k/train.parquet"])
    """Files (parquet, jsonl, json), ``NAME:SPLIT`` of an env plugin, or Hugging Face ``name[:split]``."""
    val_data: list[str] = Field(default_factory=lambda: ["~/data/gsm8k/validation.parquet"])
    """Like ``train_data``; may be empty if nothing is evaluated."""
    shuffle: bool = True
    """Draw prompts in an order seeded by ``trainer.seed`` and the epoch; false keeps the file's order."""


class ModelConfig(Section):
    """``….model``: where a model comes from."""

    path: str = "builtin:tiny"
    """Hugging Face directory or name, or ``NAME:REST`` of a plugin. SkyRL: Qwen/Qwen2.5-1.5B-Instruct."""


class OptimizerConfig(Section):
    """``….optimizer_config``: how weights are updated."""

    name: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon on hidden matrices, AdamW on embeddings, norms and biases."""
    lr: Annotated[float, Field(ge=0)] = 1e-6
    """Peak learning rate of AdamW."""
    muon_lr: Annotated[float, Field(ge=0)] = 0.02
    """Peak learning rate of Muon; read only with ``name=muon``."""
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of AdamW's first and second moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    num_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the rate rises linearly to its peak; the first already has 1/n of it."""
    scheduler: Literal["constant_with_warmup", "linear"] = "constant_with_warmup"
    """``linear`` falls after the warm-up towards ``min_lr_frac`` of the peak."""
    min_lr_frac: Fraction = 0.0
    """Where ``linear`` ends, as a fraction of the peak."""


class PolicyConfig(Section):
    """``trainer.policy``: the model that is trained."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    """Its weights and tokenizer."""
    optimizer_config: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Its optimizer."""


class RefModelConfig(Section):
    """``trainer.ref.model``: the frozen reference."""

    path: str | None = None
    """Default: the policy's path."""


class RefConfig(Section):
    """``trainer.ref``: the frozen model of the KL term; loaded only if something needs it."""

    model: RefModelConfig = Field(default_factory=RefModelConfig)
    """Its weights."""


class CriticModelConfig(Section):
    """``trainer.critic.model``: what the critic starts from."""

    path: str | None = None
    """Its body; a head without one begins anew. Default: the policy's path. SkyRL: to be named."""


class CriticConfig(Section):
    """``trainer.critic``: the value model; loaded only if something needs it."""

    model: CriticModelConfig = Field(default_factory=CriticModelConfig)
    """Its weights."""
    optimizer_config: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=5e-6))
    """Its optimizer."""


class TeacherModelConfig(Section):
    """``trainer.teacher.model``: the frozen model to learn from."""

    path: str | None = None
    """Its weights; it has the policy's tokenizer. To be named where a teacher is needed. SkyRL: trainer.ref.model.path."""


class TeacherConfig(Section):
    """``trainer.teacher``: the frozen model to learn from; loaded only if something needs it."""

    model: TeacherModelConfig = Field(default_factory=TeacherModelConfig)
    """Its weights."""


class KLControllerConfig(Section):
    """``trainer.algorithm.kl_ctrl``: the coefficient of the KL in the reward, over time."""

    type: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` moves ``kl_loss_coef`` so that the KL comes to ``kl_target``."""
    kl_target: Annotated[float, Field(gt=0)] = 0.1
    """In nats per token; read only with ``adaptive``."""
    horizon: Annotated[float, Field(gt=0)] = 10000
    """Trajectories over which the coefficient follows; read only with ``adaptive``."""


class DynamicSamplingConfig(Section):
    """``trainer.algorithm.dynamic_sampling``: which groups are trained on."""

    type: str | None = None
    """Slot of the stage `select`; null keeps every group."""
    max_sample_batches: int = 30
    """Most rounds of generation for one step; 0 or less: no bound."""
    min_replace_ratio: Fraction = 0.3
    """With ``type=replace``: the fraction of groups above which good ones stand in for the others."""


class AlgorithmConfig(Section):
    """``trainer.algorithm``: advantage, loss and their coefficients."""

    advantage_estimator: str = "grpo"
    """Slot of the stage `advantage`."""
    policy_loss_type: str = "regular"
    """Slot of the stage `loss`."""
    loss_reduction: str = "token_mean"
    """Slot of `make_reduction`: how per-token policy losses of a mini-batch are weighted."""
    grpo_norm_by_std: bool = True
    """Divide by the group's sample standard deviation; false is Dr. GRPO's advantage."""
    gamma: Fraction = 1.0
    """Discount of a reward per token, for estimators that credit tokens one by one."""
    lambd: Fraction = 1.0
    """λ of generalised advantage estimation: 1 trusts returns, 0 the critic."""
    advantage_batch_normalize: bool = False
    """Shift and scale the advantages of a batch's trained tokens to mean 0 and variance 1."""
    eps_clip_low: Fraction = 0.2
    """The ratio is clipped below at 1 minus this."""
    eps_clip_high: Annotated[float, Field(ge=0)] = 0.2
    """The ratio is clipped above at 1 plus this."""
    clip_ratio_c: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the ratio where the advantage is negative, with ``policy_loss_type=dual_clip``."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """A value further than this from the old one is clipped in the critic's loss, in task units."""
    value_head_prefix: str = "value_head"
    """Name of the critic's head among its weights."""
    max_seq_len: Positive | None = None
    """What ``loss_reduction=seq_mean_token_sum_norm`` divides by, in tokens; default: the most of a
    completion, ``generator.sampling_params.max_generate_length``. SkyRL: to be set."""
    use_kl_loss: bool = True
    """Add a KL term against the reference to the loss; loads the reference model."""
    kl_loss_coef: Annotated[float, Field(ge=0)] = 0.001
    """Its coefficient, and that of the KL in the reward."""
    kl_estimator_type: Literal["k1", "k2", "k3", "abs"] = "k3"
    """Its estimator, and that of the KL in the reward."""
    use_kl_in_reward: bool = False
    """Subtract the KL against the reference from the reward, token by token; needs ``use_kl_loss=false``."""
    kl_ctrl: KLControllerConfig = Field(default_factory=KLControllerConfig)
    """How the coefficient of the KL in the reward moves."""
    use_entropy_loss: bool = False
    """Subtract the policy's entropy from the loss."""
    entropy_loss_coef: Annotated[float, Field(ge=0)] = 0.01
    """Its coefficient."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Divides the trainer's logits; default: the sampling temperature."""
    recompute_old_logprobs: bool | None = None
    """Compute old log-probs with the trainer. Default: not where the engine computes with the trainer's
    own weights in float32, since its log-probs are the same to rounding."""
    zero_variance_filter: bool = False
    """Groups whose rewards are all equal are not trained on."""
    zero_variance_filter_tol: Annotated[float, Field(ge=0)] = 1e-6
    """Largest spread of rewards that counts as equal."""
    dynamic_sampling: DynamicSamplingConfig = Field(default_factory=DynamicSamplingConfig)
    """Which groups are trained on."""
    overlong_buffer_len: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Last tokens of the allowed length over which a reward falls linearly; 0: none; ``auto``: a fifth
    of that length, as in DAPO's paper. SkyRL's DAPO example: 512."""
    overlong_buffer_penalty_factor: Annotated[float, Field(ge=0)] = 1.0
    """What is taken at the end of that buffer, in task units."""


class PlacementConfig(Section):
    """``trainer.placement``: what computes on which devices."""

    colocate_all: bool = True
    """Trainer and engines take turns on the same GPUs; false gives engines GPUs of their own."""


class LogprobsDiffConfig(Section):
    """``trainer.logprobs_diff``: how far engine and trainer may differ on what is trained on.

    Both bound ``policy/rollout_train_logprobs_abs_diff_mean``. Equal weights give up to 1e-4 in
    float32 and a few 1e-2 in bfloat16; generation that runs ahead adds what the policy moved.
    """

    warn_above: Annotated[float, Field(gt=0)] | None = 0.1
    """Nats per token, mean of a step, above which the run says so; null: never."""
    stop_above: Annotated[float, Field(gt=0)] | None = 1.0
    """Nats per token, mean of a step, above which the run ends with an error; null: never."""

    @model_validator(mode="after")
    def _warns_first(self) -> "LogprobsDiffConfig":
        warn, stop = self.warn_above, self.stop_above
        if warn is not None and stop is not None and stop < warn:
            raise ValueError(
                f"trainer.logprobs_diff.stop_above={stop:g} is below warn_above={warn:g}, so the run would "
                "end before it warns; raise it, or lower the other"
            )
        return self


class FullyAsyncConfig(Section):
    """``trainer.fully_async``: generation running ahead of training."""

    enabled: bool = False
    """False is synchronous training: ``max_staleness_steps`` counts as 0."""
    max_staleness_steps: Annotated[int, Field(ge=0)] = 4
    """Most steps between the weights that began a trajectory and those that it trains."""
    num_parallel_generation_workers: Positive | None = None
    """Most groups generated at a time; null: all that ``max_staleness_steps`` allows. SkyRL: 768."""
    sample_full_batch: bool = False
    """Groups that ``trainer.algorithm.zero_variance_filter`` finds are dropped, and others generated in
    their place; false masks them."""
    clear_kv_cache_on_weight_sync: bool = False
    """Running requests compute their keys and values again after each weight sync; false keeps those of
    the weights before."""


class TrainerConfig(Section):
    """``trainer``: the loop, its batches, its files."""

    strategy: str = "fsdp"
    """Slot of `make_trainer`."""
    runtime: str = "local"
    """Which processes make up the run. SkyRL: Ray always."""
    evaluator: str = "accuracy"
    """Slot of the stage `evaluate`."""
    train_batch_size: Positive = 1024
    """Prompts of one step."""
    policy_mini_batch_size: Positive = 256
    """Prompts of one optimizer step; divides ``train_batch_size``."""
    critic_mini_batch_size: Positive | None = None
    """The critic takes a step with each of the policy's: nothing else than ``policy_mini_batch_size``. SkyRL: 256."""
    micro_train_batch_size_per_gpu: Positive = 1
    """Token rows of one forward and backward pass."""
    remove_microbatch_padding: bool = True
    """Short rows of a pass share a row of it, where the model keeps them apart; false pads them."""
    micro_forward_batch_size_per_gpu: Positive = 1
    """Token rows of one forward pass for scores."""
    max_tokens_per_microbatch: int = -1
    """Most tokens of one pass, padding included, in place of both numbers of rows; a longer row is
    computed by itself. 0 or less: rows are counted."""
    update_epochs_per_batch: Positive = 1
    """Passes over each batch."""
    epochs: Positive = 1
    """Passes over the training data; its last incomplete batch is left out."""
    max_training_steps: Positive | None = None
    """Steps after which the run ends whatever ``epochs`` says."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of everything random."""
    max_prompt_length: Positive = 512
    """Prompts of more tokens are dropped and counted."""
    eval_batch_size: Positive = 1024
    """Prompts evaluated at a time."""
    eval_interval: int = 5
    """Steps between evaluations; 0 or less: only before and after training."""
    eval_before_train: bool = True
    """Evaluate the initial weights."""
    ckpt_path: str = "runs"
    """Folder of run folders. SkyRL: ~/ckpts/."""
    ckpt_interval: int = 10
    """Steps between checkpoints; 0 or less: only at the end."""
    max_ckpts_to_keep: int = -1
    """Newest checkpoints kept; -1 keeps all."""
    resume_mode: Literal["latest", "from_path", "none"] | None = "latest"
    """``latest`` continues this run's own folder; ``none`` (or null) moves that folder aside and starts anew."""
    resume_path: str | None = None
    """A ``global_step_N`` folder, with ``resume_mode=from_path``."""
    hf_save_interval: int = -1
    """Steps between Hugging Face exports; the last step always exports. 0 or less: only there."""
    export_path: str | None = None
    """Exports go to a folder named after the run in here; default: ``export/`` in the run folder. SkyRL: ~/exports/."""
    log_path: str | None = None
    """Logs go to a folder named after the run in here; default: the run folder. SkyRL: a folder for temporary files."""
    logger: str | list[str] = Field(default_factory=lambda: ["console"])
    """Loggers, by plugin name. SkyRL: wandb."""
    logger_timeout_s: Seconds = 60.0
    """Longest wait at the end of a run for loggers that are behind; ``skyrl log`` delivers the rest."""
    close_timeout_s: Seconds = 60.0
    """Longest wait at the end of a run for each of what runs beside the loop: rollouts, the engine, the
    trainer's thread."""
    project_name: str = "skyrl"
    """Project under which loggers file the run."""
    run_name: str = "test_run"
    """Names the run folder."""
    tags: list[str] | None = None
    """Labels of the run, for loggers that have them."""
    dump_eval_results: bool = True
    """Write what each evaluation generated, one file per data source."""
    num_logger_train_samples: Annotated[int, Field(ge=-1)] = -1
    """Trained trajectories of a step that loggers show in a table; -1: all."""
    num_logger_eval_samples: Annotated[int, Field(ge=-1)] = -1
    """The same of an evaluation."""
    print_example_interval: int = 0
    """Steps between trajectories that the console prints; 0 or less: none. SkyRL: 1."""
    dump_trajectories: bool = True
    """Write every trained trajectory to ``trajectories/step_N.parquet``."""
    max_failed_frac: Fraction = 0.5
    """Lost trajectories of one step, as a fraction; more stop the run."""
    bf16: bool = True
    """Compute in bfloat16; weights and optimizer stay float32."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, more time."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The model that is trained."""
    critic: CriticConfig = Field(default_factory=CriticConfig)
    """The value model."""
    ref: RefConfig = Field(default_factory=RefConfig)
    """The frozen reference."""
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    """The frozen model to learn from."""
    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    """Advantage and loss."""
    placement: PlacementConfig = Field(default_factory=PlacementConfig)
    """Devices."""
    logprobs_diff: LogprobsDiffConfig = Field(default_factory=LogprobsDiffConfig)
    """How far engine and trainer may differ."""
    fully_async: FullyAsyncConfig = Field(default_factory=FullyAsyncConfig)
    """Generation ahead of training."""

    @property
    def max_staleness(self) -> int:
        """Most steps a trajectory may lag behind the weights that it trains; 0 is synchronous."""
        return self.fully_async.max_staleness_steps if self.fully_async.enabled else 0

    @property
    def tokens_per_pass(self) -> int | None:
        """``max_tokens_per_microbatch``; None if rows are counted."""
        return self.max_tokens_per_microbatch if self.max_tokens_per_microbatch > 0 else None

    @property
    def loggers(self) -> tuple[str, ...]:
        """`logger` as a tuple."""
        return (self.logger,) if isinstance(self.logger, str) else tuple(self.logger)

    @field_validator("ckpt_path", "export_path", "log_path")
    @classmethod
    def _is_a_folder(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None and "://" in path:
            raise ValueError(
                f"trainer.{info.field_name}='{path}' is an address; runs are written to folders: mount the "
                "storage and name its folder, or copy the run folder when the run has ended"
            )
        return path

    @field_validator("run_name")
    @classmethod
    def _names_one_folder(cls, name: str) -> str:
        if Path(name).name != name or name == "..":
            raise ValueError(
                f"trainer.run_name='{name}' names no folder in trainer.ckpt_path; use a name without "
                "slashes, and trainer.ckpt_path for where run folders are"
            )
        return name

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainerConfig":
        if self.train_batch_size % self.policy_mini_batch_size:
            raise ValueError(
                f"trainer.train_batch_size={self.train_batch_size} is not a multiple of "
                f"trainer.policy_mini_batch_size={self.policy_mini_batch_size}; "
                "set one so that it divides the other"
            )
        if self.max_ckpts_to_keep == 0 or self.max_ckpts_to_keep < -1:
            raise ValueError(
                f"trainer.max_ckpts_to_keep={self.max_ckpts_to_keep} keeps no checkpoint to resume "
                "from; use -1 for all, or 1 or more"
            )
        ahead = self.fully_async
        if ahead.enabled and ahead.sample_full_batch and not self.algorithm.zero_variance_filter:
            raise ValueError(
                "trainer.fully_async.sample_full_batch=true replaces the groups that "
                "trainer.algorithm.zero_variance_filter=true finds; set both, or leave it out"
            )
        if (self.resume_mode == "from_path") != (self.resume_path is not None):
            raise ValueError(
                "trainer.resume_path and trainer.resume_mode=from_path come together: set both or neither"
            )
        return self


class SamplingConfig(Section):
    """``generator.….sampling_params``: how completions are sampled."""

    max_generate_length: Positive = 1024
    """Most tokens of one completion."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 takes the most likely token; not allowed in training."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Most likely tokens kept; -1 keeps all."""
    min_p: Fraction = 0.0
    """Least probability relative to the most likely token."""
    stop: list[str] | None = None
    """Strings that end a completion."""
    logprobs: Literal[0, 1] | None = 1
    """Log-probs that the engine returns beside the sampled token's; null asks for none at all."""
    additional_kwargs: dict[str, Any] | None = None
    """More for the engine: ``stop_token_ids``, ids that end a completion, and what it takes by names of
    its own."""

    @field_validator("stop")
    @classmethod
    def _says_something(cls, stop: list[str] | None) -> list[str] | None:
        if stop is not None and "" in stop:
            raise ValueError(
                "generator.…sampling_params.stop: the empty string ends every completion at its first token; "
                "leave it out, or use null for no stop strings"
            )
        return stop

    @field_validator("additional_kwargs")
    @classmethod
    def _lists_ids(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, value in (kwargs or {}).items():
            if name != "stop_token_ids":
                continue  # the engine that is selected says which it takes
            if not isinstance(value, list) or not all(type(token) is int for token in value):
                raise ValueError(
                    f"generator.…sampling_params.additional_kwargs.{name}={value!r}: it is a list of "
                    "token ids"
                )
        return kwargs


class EvalSamplingConfig(SamplingConfig):
    """``generator.eval_sampling_params``: the same for evaluation."""

    max_generate_length: Positive | None = None  # type: ignore[assignment]
    """Default: that of training."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the most likely token."""


class InferenceEngineConfig(Section):
    """``generator.inference_engine``: what generates."""

    backend: str = "transformers"
    """Slot of `make_engine`. SkyRL: vllm."""
    weight_sync_backend: str = "auto"
    """Slot of the stage `sync_weights`; ``auto`` takes the best that trainer and engine share. SkyRL: nccl."""
    weight_sync_timeout_s: Seconds = 600.0
    """Deadline of one weight sync, from its beginning until the engine generates with the new weights."""
    max_num_seqs: Positive = 1024
    """Most rows that the engine computes at once."""
    run_engines_locally: bool = True
    """The run starts its engine; false attaches to the one of ``external_server_urls``."""
    external_server_urls: list[str] | None = None
    """Addresses of engines that run already, such as ``[http://127.0.0.1:8000]``; they are used as they
    were started, and go on after the run."""
    external_proxy_url: str | None = None
    """Address of a router that passes completions on to the engines of ``external_server_urls``; weights,
    pauses and aborts go to each of them past it."""
    num_engines: Positive = 1
    """Engines that the run starts; each holds all weights."""
    tensor_parallel_size: Positive = 1
    """GPUs that each layer of one engine is split over."""
    pipeline_parallel_size: Positive = 1
    """Groups of GPUs that the layers of one engine are dealt out to."""
    data_parallel_size: Positive = 1
    """Copies of the model behind the address of one engine."""
    expert_parallel_size: Positive = 1
    """1, or tensor × data parallel size: ranks that the experts of one engine are dealt out to."""
    distributed_executor_backend: Literal["mp", "ray"] = "mp"
    """What starts the processes of an engine on several GPUs; ``ray`` needs it installed. SkyRL: ray."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a GPU's memory for weights and cache."""
    model_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """What the engine computes in; null is what the trainer does, by ``trainer.bf16``. SkyRL: bfloat16."""
    enforce_eager: bool = False
    """Compile nothing and capture no graphs: starts sooner, generates slower."""
    enable_prefix_caching: bool = True
    """Prompts that begin alike are computed once."""
    enable_chunked_prefill: bool = True
    """Long prompts are computed over several steps, beside what is sampled. SkyRL does not read it."""
    max_num_batched_tokens: Positive = 8192
    """Most tokens of one step of an engine."""
    served_model_name: str | None = None
    """What the engine calls its model, for others who ask it."""
    engine_init_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More of the engine's own settings, by its names; it says which it has."""


class ChatTemplateConfig(Section):
    """``generator.chat_template``: another chat template than the tokenizer's own."""

    source: Literal["name", "file"] = "name"
    """What ``name_or_path`` is."""
    name_or_path: str | None = None
    """A template's name, or a Jinja file; null is the tokenizer's own."""


class GeneratorConfig(Section):
    """``generator``: how trajectories are made."""

    rollout: str = "agent"
    """Slot of the stage `generate`."""
    reward: str = "env_reward"
    """Slot of the stage `reward`."""
    tokenizer: str = "transformers"
    """Slot of `make_tokenizer`."""
    n_samples_per_prompt: Positive = 5
    """Trajectories of one group."""
    eval_n_samples_per_prompt: Positive = 1
    """The same in evaluation."""
    max_turns: Positive | None = None
    """Caps every env's own turn limit; never raises it. SkyRL: 1, overwriting the env's."""
    max_input_length: Positive | None = None
    """A row of more tokens is not continued; default: ``trainer.max_prompt_length`` for one turn,
    no limit but the model's for several."""
    sampling_params: SamplingConfig = Field(default_factory=SamplingConfig)
    """Training."""
    eval_sampling_params: EvalSamplingConfig = Field(default_factory=EvalSamplingConfig)
    """Evaluation."""
    chat_template: ChatTemplateConfig = Field(default_factory=ChatTemplateConfig)
    """Another chat template than the tokenizer's own."""
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Passed to the tokenizer's chat template."""
    use_conversation_multi_turn: bool = True
    """Each reply of the env is a message of its own; false puts all turns into one assistant message."""
    append_eos_token_after_stop_str_in_multi_turn: bool = True
    """A turn that a stop string ended is closed by an end token, which is not trained on."""
    step_wise_trajectories: bool = False
    """Each turn is a row of its own, with the whole conversation before it as prompt."""
    merge_stepwise_output: bool = False
    """Join rows of consecutive turns where one begins with the other."""
    zero_reward_on_non_stop: bool = False
    """A trajectory that did not end by itself has reward 0."""
    apply_overlong_filtering: bool = False
    """A trajectory that did not end by itself is not trained on."""
    reward_timeout_s: Seconds = 60.0
    """Deadline of the reward stage for one group."""
    request_timeout_s: Seconds = 3600.0
    """Deadline of one call to the engine."""
    use_cache_salt: bool = True
    """A prefix in the engine's cache is used by requests of the same policy version alone; with false
    the cache is emptied at every sync, and requests in flight begin anew what they had cached."""
    inference_engine: InferenceEngineConfig = Field(default_factory=InferenceEngineConfig)
    """What generates."""

    @model_validator(mode="after")
    def _merging_needs_rows(self) -> "GeneratorConfig":
        if self.merge_stepwise_output and not self.step_wise_trajectories:
            raise ValueError(
                "generator.merge_stepwise_output=true joins the rows that "
                "generator.step_wise_trajectories=true makes; set both, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_one_layout(self) -> "GeneratorConfig":
        if self.step_wise_trajectories and not self.use_conversation_multi_turn:
            raise ValueError(
                "generator.use_conversation_multi_turn=false puts all turns into one message, and "
                "generator.step_wise_trajectories=true makes each a row of its own; set one of them"
            )
        return self


class EnvironmentConfig(Section):
    """``environment``: what judges. Settings of an env stand under ``environment.<name>``."""

    env_class: str = "gsm8k"
    """Env of the rows that name none."""
    timeout_s: Seconds = 60.0
    """Deadline of every call of an env."""
    max_env_workers: int = 32
    """Threads that env calls run in, at least 1."""

    @field_validator("max_env_workers")
    @classmethod
    def _has_a_thread(cls, number: int) -> int:
        if number < 1:
            raise ValueError(
                f"environment.max_env_workers={number} leaves envs no thread, and one that hangs would "
                "stop the run; use 1 or more. An env whose class says instant = True is called without one"
            )
        return number


class Config(Section):
    """The whole tree."""

    data: DataConfig = Field(default_factory=DataConfig)
    """Data sets."""
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    """The loop."""
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    """Rollouts."""
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Envs."""

    @model_validator(mode="after")
    def _training_samples(self) -> "Config":
        if self.generator.sampling_params.temperature == 0:
            raise ValueError(
                "generator.sampling_params.temperature=0 samples the same completion every time, which "
                "trains nothing; use a temperature above 0 (evaluation has its own: "
                "generator.eval_sampling_params.temperature)"
            )
        self._refuse_odd_lengths()
        algorithm, sampled_at = self.trainer.algorithm, self.generator.sampling_params.temperature
        if algorithm.recompute_old_logprobs is False and algorithm.temperature not in {
            None,
            sampled_at,
        }:
            raise ValueError(
                f"trainer.algorithm.temperature={algorithm.temperature:g} differs from the sampling "
                f"temperature {sampled_at:g}, so the sampler's log-probs cannot stand for the old ones; "
                "leave out trainer.algorithm.recompute_old_logprobs=false"
            )
        return self

    def _refuse_odd_lengths(self) -> None:
        limit, prompts = self.generator.max_input_length, self.trainer.max_prompt_length
        if limit is None or limit == prompts:
            return
        if limit < prompts:
            raise ValueError(
                f"generator.max_input_length={limit} is less than trainer.max_prompt_length={prompts}, so "
                "prompts between the two would get no completion; raise it, or lower the other"
            )
        if self.generator.max_turns == 1:
            raise ValueError(
                f"generator.max_input_length={limit} bounds what several turns add to a prompt, and "
                f"generator.max_turns=1 allows none; leave it out, or set it to "
                f"trainer.max_prompt_length={prompts}"
            )


KERNEL_SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", Config),
    ("data", DataConfig),
    ("trainer", TrainerConfig),
    ("trainer.policy", PolicyConfig),
    ("trainer.critic", CriticConfig),
    ("trainer.ref", RefConfig),
    ("trainer.teacher", TeacherConfig),
    ("trainer.algorithm", AlgorithmConfig),
    ("trainer.placement", PlacementConfig),
    ("trainer.fully_async", FullyAsyncConfig),
    ("generator", GeneratorConfig),
    ("generator.inference_engine", InferenceEngineConfig),
    ("environment", EnvironmentConfig),
)
"""Where each section that plugins may ask for stands in the tree."""
