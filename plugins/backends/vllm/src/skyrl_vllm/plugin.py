"""The hook of ``vllm``: an engine that starts its servers, or attaches to some."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from skyrl_kernel.config.generator import GeneratorConfig, InferenceEngineConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.logs import process_name
from skyrl_kernel.progress import say
from skyrl_kernel.protocols import Engine, Settings

if TYPE_CHECKING:
    from skyrl_vllm.attached import Needs
    from skyrl_vllm.fleet import Deadlines
    from skyrl_vllm.server import Server

NAME = "vllm"
START_VARIABLE = "SKYRL_WAIT_UNTIL_INFERENCE_SERVER_HEALTHY_TIMEOUT_S"
_CALL, _CANCEL = 0.9, 0.05
"""Parts of ``weight_sync_timeout_s`` for one call of an update, and for taking it back where that call
failed. Both end before the whole sync is given up, whose error knows no server, and theirs names it."""


@hookimpl
def check_engine(name: str, settings: Settings) -> Sequence[str] | None:
    """Whether vLLM is there, and has the settings that were passed on to it."""
    if name != NAME:
        return None
    from skyrl_vllm.server import missing
    from skyrl_vllm.settings import more_flags, refuse_decided, refuse_mistyped
    from skyrl_vllm.transports import missing_half, native

    generator = settings[GeneratorConfig]
    config = generator.inference_engine
    _refuse_router_alone(config)
    _refuse_no_addresses(config.external_server_urls or [])
    _refuse_offloaded(config, settings[TrainerConfig])
    _deadlines(generator)
    refuse_mistyped("sampling_params", generator.sampling_params)
    refuse_mistyped("eval_sampling_params", generator.eval_sampling_params)
    refuse_decided(config.engine_init_kwargs)
    if config.external_server_urls:
        return native.missing(config.weight_sync_backend)
    _refuse_ray_in_ray(config, settings[TrainerConfig])
    lacking = [*missing(config), *missing_half(config.weight_sync_backend)]
    if not lacking:
        more_flags(config.engine_init_kwargs)
    return lacking


@hookimpl
def make_engine(name: str, settings: Settings, model: Path) -> Engine | None:
    """An engine with servers of its own, or with those that were named.

    Servers start here, all at once, and are waited for at the first request, so that
    they load while the run does.
    """
    if name != NAME:
        return None
    from skyrl_vllm.adapters import SYNC
    from skyrl_vllm.engine import VllmEngine
    from skyrl_vllm.settings import dtype

    generator, trainer = settings[GeneratorConfig], settings[TrainerConfig]
    config = generator.inference_engine
    return VllmEngine(
        config.external_server_urls or _start(config, trainer, model),
        model,
        router=config.external_proxy_url,
        max_rows=_rows_at_once(config),
        precision="float32" if dtype(config, trainer) == "float32" else "bfloat16",
        is_salted=generator.use_cache_salt,
        needs=_needs(config, trainer, model) if config.external_server_urls else None,
        takes_adapters=config.weight_sync_backend == SYNC,
        deadlines=_deadlines(generator),
    )


def _deadlines(generator: GeneratorConfig) -> "Deadlines":
    """Those of the run.

    Raises:
        ConfigError: The environment says how long a server may take to start, and names no time.
    """
    from skyrl_vllm.fleet import Deadlines

    sync_s = generator.inference_engine.weight_sync_timeout_s
    return Deadlines(
        start_s=_start_s(Deadlines().start_s),
        request_s=generator.request_timeout_s,
        update_s=_CALL * sync_s,
        cancel_s=_CANCEL * sync_s,
    )


def _start_s(default_s: float) -> float:
    said = os.environ.get(START_VARIABLE)
    if not said:
        return default_s
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ConfigError(
            f"{START_VARIABLE}={said}: a vLLM server may take a number of seconds above 0, such as 1200; "
            f"without it that is {default_s:g}"
        )
    return found


def _rows_at_once(config: InferenceEngineConfig) -> int:
    """Completions of one server at a time: ``max_num_seqs``, unless so many files cannot be open.

    Each copy of the model that a server of this run computes with has as many rows.
    """
    from skyrl_vllm.open_files import allowed

    copies = 1 if config.external_server_urls else config.data_parallel_size
    servers = len(config.external_server_urls or ()) or config.num_engines
    wanted = config.max_num_seqs * copies
    rows = max(1, allowed(wanted * servers) // servers)
    if rows < wanted:
        each = f" × data_parallel_size={copies}" if copies > 1 else ""
        say(
            f"warning: {rows} completions of each server run at a time, not "
            f"generator.inference_engine.max_num_seqs={config.max_num_seqs}{each}: this process may open no "
            "more files (ulimit -Hn)",
            style="yellow",
        )
    return rows


def _needs(config: InferenceEngineConfig, trainer: TrainerConfig, model: Path) -> "Needs":
    from skyrl_vllm.attached import Needs
    from skyrl_vllm.settings import dtype
    from skyrl_vllm.transports import server_backend

    return Needs(
        model=model,
        dtype=dtype(config, trainer),
        backend=server_backend(
            config.weight_sync_backend, colocated=trainer.placement.colocate_all
        ),
        sleeps=config.offload_kv_for_weight_sync,
    )


def _refuse_router_alone(config: InferenceEngineConfig) -> None:
    if config.external_proxy_url and not config.external_server_urls:
        raise ConfigError(
            f"generator.inference_engine.external_proxy_url={config.external_proxy_url}: a router sends "
            "each request to one engine, and weights must reach all; name them in "
            "generator.inference_engine.external_server_urls"
        )


def _refuse_no_addresses(urls: Sequence[str]) -> None:
    key = "generator.inference_engine.external_server_urls"
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{key} has '{url}'; an address is such as http://127.0.0.1:8000")
    if len({url.rstrip("/") for url in urls}) < len(urls):
        raise ConfigError(f"{key}={list(urls)} names a server twice; name each once")


def _refuse_offloaded(config: InferenceEngineConfig, trainer: TrainerConfig) -> None:
    from skyrl_vllm.transports import native

    name, key = config.weight_sync_backend, "trainer.policy.fsdp_config.cpu_offload"
    if name in native.NAMES and trainer.policy.fsdp_config.cpu_offload:
        raise ConfigError(
            f"generator.inference_engine.weight_sync_backend={name} sends weights that are on a GPU, and "
            f"{key}=true keeps them in the machine's memory; use weight_sync_backend=auto, or {key}=false"
        )


def _refuse_ray_in_ray(config: InferenceEngineConfig, trainer: TrainerConfig) -> None:
    key = "generator.inference_engine.distributed_executor_backend"
    is_several = config.tensor_parallel_size * config.pipeline_parallel_size > 1
    if is_several and config.distributed_executor_backend == trainer.runtime == "ray":
        raise ConfigError(
            f"{key}=ray with trainer.runtime=ray: vLLM would ask the run's Ray for the GPUs that the engine "
            f"was given already, and wait for ever; set {key}=mp"
        )


def _start(
    config: InferenceEngineConfig, trainer: TrainerConfig, model: Path
) -> "Sequence[Server]":
    """All servers, none of them ready yet; if one cannot be started the others end."""
    from skyrl_vllm.adapters import adapter_flags, adapter_variables
    from skyrl_vllm.server import Server, is_cpu_build
    from skyrl_vllm.settings import dtype, flags, more_flags, sleep_flags
    from skyrl_vllm.transports import server_flags, server_variables
    from skyrl_vllm.updates import stored_shapes

    number, variables = config.num_engines, _gpus(config, trainer)
    transport, colocated = config.weight_sync_backend, trainer.placement.colocate_all
    all_flags = [*flags(config, trainer), *server_flags(transport, colocated=colocated)]
    all_flags += [
        *sleep_flags(config, trainer),
        *adapter_flags(
            transport,
            trainer,
            stored_shapes(model) or {},
            dtype=dtype(config, trainer),
            on_gpu=not is_cpu_build(),
        ),
    ]
    all_flags += more_flags(config.engine_init_kwargs)
    logs = _logs(trainer, number)
    servers: list[Server] = []
    try:
        for log, own in zip(logs, variables, strict=True):
            own |= server_variables(transport, colocated=colocated) | adapter_variables(transport)
            servers.append(Server(model, all_flags, log=log, variables=own))
    except BaseException:
        for server in servers:
            server.close()
        raise
    return servers


def _gpus(config: InferenceEngineConfig, trainer: TrainerConfig) -> list[dict[str, str]]:
    """Those of each server, as its environment has them.

    A runtime of several processes gives the engine's none of the trainer's.
    """
    from skyrl_vllm import devices
    from skyrl_vllm.settings import size

    beside_trainer = trainer.runtime == "local" and not trainer.placement.colocate_all
    return devices.shares(devices.visible(), config.num_engines, size(config), apart=beside_trainer)


def _logs(config: TrainerConfig, number: int) -> list[Path]:
    """Where the servers' output goes: the run's logs, or temporary files where there is no run.

    That is ``vllm.log``, or ``logs/engine_0-vllm.log`` of the process ``engine 0``.
    """
    names = ["vllm"] if number == 1 else [f"vllm-{place}" for place in range(number)]
    folder = Path(config.log_path or config.ckpt_path).expanduser() / config.run_name
    if process := process_name():
        folder /= "logs"
        names = [f"{process.replace(' ', '_')}-{name}" for name in names]
    if folder.is_dir():
        return [folder / f"{name}.log" for name in names]
    return [_temporary(name) for name in names]


def _temporary(name: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"skyrl-{name}-", suffix=".log")
    os.close(handle)
    return Path(path)
