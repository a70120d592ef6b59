"""What a run says about its servers, in vLLM's own words: checked before one is started."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from skyrl_kernel.config.generator import InferenceEngineConfig, SamplingConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.place import shares_gpu
from skyrl_kernel.progress import say
from skyrl_vllm.fleet import SAY_EVERY_S

SECTION = "generator.inference_engine"
_ASK_S = 300.0
"""vLLM takes 10 to 30 s to say what it knows: it is imported for that."""
_SAY_AFTER_S = 2.0
"""Until the first line that says so."""

_LOOPBACK = "the run talks to its servers on loopback, at ports that it finds"
_LOGPROBS = "training needs the log-probs of what was sampled from"
_WEIGHTS = "the run brings its weights to the servers"
_PROCESSES = "the run starts one server for each engine, and ends it"
_MODEL = "servers have the model that is trained, trainer.policy.model.path"
_ADAPTERS = "servers have the adapter that is trained, trainer.policy.model.lora"
_DRAFT = "an update would not reach the draft model"

DECIDED: Mapping[str, str] = {
    **dict.fromkeys(
        ("host", "port", "uds", "root_path", "api_key", "grpc", "grpc_port"), _LOOPBACK
    ),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "middleware"), _LOOPBACK),
    **dict.fromkeys(("logprobs_mode", "max_logprobs"), _LOGPROBS),
    **dict.fromkeys(("weight_transfer_config", "enable_scale_out", "tokens_only"), _WEIGHTS),
    **dict.fromkeys(("headless", "api_server_count", "config", "data_parallel_rank"), _PROCESSES),
    **dict.fromkeys(("data_parallel_address", "data_parallel_rpc_port"), _PROCESSES),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port"), _PROCESSES),
    **dict.fromkeys(("model", "model_tag", "tokenizer", "runner", "skip_tokenizer_init"), _MODEL),
    **dict.fromkeys(("speculative_config", "spec_model", "spec_method", "spec_tokens"), _DRAFT),
    **dict.fromkeys(("enable_lora", "max_loras", "max_cpu_loras", "lora_modules"), _ADAPTERS),
    **dict.fromkeys(("max_lora_rank", "lora_target_modules", "lora_dtype"), _ADAPTERS),
    "dtype": f"set {SECTION}.model_dtype",
    "seed": "set trainer.seed",
    "enable_sleep_mode": f"set trainer.placement.colocate_all, or {SECTION}.offload_kv_for_weight_sync",
    "enable_expert_parallel": f"set {SECTION}.expert_parallel_size",
    **{
        key: f"set {SECTION}.{key}"
        for key in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
            "distributed_executor_backend",
            "gpu_memory_utilization",
            "enforce_eager",
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "max_num_batched_tokens",
            "max_num_seqs",
            "served_model_name",
        )
    },
}
"""Name of vLLM's → why ``engine_init_kwargs`` cannot have it."""


def dtype(config: InferenceEngineConfig, trainer: TrainerConfig) -> str:
    """What servers compute in."""
    return config.model_dtype or ("bfloat16" if trainer.bf16 else "float32")


def flags(config: InferenceEngineConfig, trainer: TrainerConfig) -> list[str]:
    """VLLM's command line of one server, without ``engine_init_kwargs``.

    What is 1 is left out: several devices bring processes that one does without.
    """
    found = [
        *("--dtype", dtype(config, trainer)),
        *("--seed", str(trainer.seed)),
        *("--max-num-seqs", str(config.max_num_seqs)),
        *("--max-num-batched-tokens", str(config.max_num_batched_tokens)),
        *("--gpu-memory-utilization", str(config.gpu_memory_utilization)),
        _switch("enable-prefix-caching", config.enable_prefix_caching),
        _switch("enable-chunked-prefill", config.enable_chunked_prefill),
        _switch("enforce-eager", config.enforce_eager),
    ]
    for name in ("tensor", "pipeline", "data"):
        if (size := getattr(config, f"{name}_parallel_size")) > 1:
            found += [f"--{name}-parallel-size", str(size)]
    if config.tensor_parallel_size * config.pipeline_parallel_size > 1:
        found += ["--distributed-executor-backend", config.distributed_executor_backend]
    if config.expert_parallel_size > 1:
        found.append("--enable-expert-parallel")
    if config.served_model_name is not None:
        found += ["--served-model-name", config.served_model_name]
    return found


def sleep_flags(config: InferenceEngineConfig, trainer: TrainerConfig) -> list[str]:
    """What a server needs that is to give its GPU memory back at times; none where it keeps it."""
    urls = config.external_server_urls or []
    shares = shares_gpu(urls, colocated=trainer.placement.colocate_all)
    return ["--enable-sleep-mode"] if shares or config.offload_kv_for_weight_sync else []


def size(config: InferenceEngineConfig) -> int:
    """GPUs of one server."""
    return config.tensor_parallel_size * config.pipeline_parallel_size * config.data_parallel_size


def _switch(name: str, is_on: bool) -> str:
    return f"--{name}" if is_on else f"--no-{name}"


# --- engine_init_kwargs -----------------------------------------------------------------------------


def refuse_decided(kwargs: Mapping[str, Any]) -> None:
    """Refuse what this package sets, or another key does.

    Raises:
        ConfigError: Says why, of each.
    """
    problems = [
        f"{SECTION}.engine_init_kwargs.{name}: {why}"
        for name in kwargs
        if (why := DECIDED.get(name.replace("-", "_")))
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def more_flags(kwargs: Mapping[str, Any]) -> list[str]:
    """``engine_init_kwargs`` on vLLM's command line, as the installed vLLM understands them.

    Asks it in a process of its own, once for the same ones.

    Raises:
        ConfigError: It has no such setting, or takes no such value.
    """
    return list(_asked(json.dumps(kwargs))) if kwargs else []


@cache
def _asked(kwargs: str) -> tuple[str, ...]:
    code, said, errors = _talk([sys.executable, "-m", "skyrl_vllm.known"], kwargs)
    if code:
        raise ConfigError(
            f"{SECTION}.engine_init_kwargs cannot be checked, since vLLM does not start here:\n"
            f"{errors[-2000:]}"
        )
    answer = json.loads(said)
    if answer["problems"]:
        lines = [f"{SECTION}.engine_init_kwargs.{one}" for one in answer["problems"]]
        raise ConfigError("\n".join(lines))
    return tuple(answer["flags"])


def _talk(command: list[str], words: str) -> tuple[int, str, str]:
    """Exit code, output and errors; says every now and then that it waits."""
    began = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        patience_s, rest = _SAY_AFTER_S, words or None
        while True:
            try:
                said, errors = process.communicate(rest, timeout=patience_s)
                return process.returncode, said, errors
            except subprocess.TimeoutExpired:
                waited = time.monotonic() - began
                if waited > _ASK_S:
                    process.kill()
                    raise
                say(
                    f"vLLM is imported, to check {SECTION}.engine_init_kwargs; {waited:.0f} s so far"
                )
                patience_s, rest = SAY_EVERY_S, None  # what is left of it is sent by itself


# --- additional_kwargs ------------------------------------------------------------------------------

SAMPLING: Mapping[str, Any] = {
    "ignore_eos": bool,
    "skip_reading_prefix_cache": bool,
    "min_tokens": int,
    "bad_words": list[str],
    "allowed_token_ids": list[int],
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "thinking_token_budget": int,
}
"""vLLM's sampling parameters that pass, and their types. All but the first two change the
distribution: their log-probs are processed too, but the trainer knows nothing of them, so
``plugin.toml`` has them for evaluation only."""


def refuse_mistyped(section: str, config: SamplingConfig) -> None:
    """Refuse sampling parameters of the wrong type.

    Raises:
        ConfigError: Names the first, and what it takes.
    """
    for name, value in (config.additional_kwargs or {}).items():
        if name not in SAMPLING:
            continue
        try:
            TypeAdapter(SAMPLING[name]).validate_python(value, strict=not isinstance(value, int))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(
                f"generator.{section}.additional_kwargs.{name}={value!r}: {message[0].lower()}{message[1:]}"
            ) from error
