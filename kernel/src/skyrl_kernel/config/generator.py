"""``generator``: how trajectories are made, and by which engine."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from skyrl_kernel.config.section import Fraction, Positive, Seconds, Section

NO_ENGINE = "none"
"""``backend`` of runs that sample nothing."""


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
    weight_transfer_threshold_cuda_ipc_GB: Annotated[float, Field(gt=0)] = 1.0
    """GiB of GPU memory through which ``cuda_ipc`` passes weights on, piece by piece."""
    offload_kv_for_weight_sync: bool = False
    """An engine with GPUs of its own drops its cache while new weights come, and takes the memory again
    after them: for syncs that need more room than ``gpu_memory_utilization`` leaves."""
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
    """What starts the processes of an engine on several GPUs; ``ray`` needs it installed, and does not go
    with ``trainer.runtime=ray``. SkyRL: ray."""
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
    enable_ray_prometheus_stats: bool = True
    """Each step and each evaluation tells what the engine counts of its own work; needs no Ray."""
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
    """Deadline of one call to the engine; vLLM's begins when the request's turn has come."""
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
