"""The hook of ``vllm``: an engine that starts its server, or attaches to one."""

import os
import tempfile
from pathlib import Path

from skyrl_kernel.config.tree import GeneratorConfig, TrainerConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, Settings

NAME = "vllm"
START_VARIABLE = "SKYRL_WAIT_UNTIL_INFERENCE_SERVER_HEALTHY_TIMEOUT_S"
_CONNECTIONS = 512


@hookimpl
def make_engine(name: str, settings: Settings, model: Path) -> Engine | None:
    """An engine with a server of its own, or with the one that was named.

    The server starts here and is waited for at the first request, so that it loads
    while the run does.
    """
    if name != NAME:
        return None
    from skyrl_vllm.engine import VllmEngine
    from skyrl_vllm.fleet import Deadlines
    from skyrl_vllm.server import Server

    generator, trainer = settings[GeneratorConfig], settings[TrainerConfig]
    config = generator.inference_engine
    urls = config.external_server_urls or []
    if len(urls) > 1:
        raise ConfigError(
            f"generator.inference_engine.external_server_urls names {len(urls)} servers; this engine "
            "uses one"
        )
    server: Server | str = (
        urls[0]
        if urls
        else Server(
            model,
            (
                *("--dtype", "bfloat16" if trainer.bf16 else "float32"),
                *("--max-num-seqs", str(config.max_num_seqs)),
                *("--seed", str(trainer.seed)),
            ),
            log=_log(trainer),
        )
    )
    deadlines = Deadlines(
        start_s=float(os.environ.get(START_VARIABLE) or Deadlines().start_s),
        request_s=generator.request_timeout_s,
    )
    return VllmEngine(
        server, model, max_rows=min(config.max_num_seqs, _CONNECTIONS), deadlines=deadlines
    )


def _log(config: TrainerConfig) -> Path:
    """Where the server's output goes: the run's logs, or a temporary file where there is no run."""
    folder = Path(config.log_path or config.ckpt_path).expanduser() / config.run_name
    if folder.is_dir():
        return folder / "vllm.log"
    handle, path = tempfile.mkstemp(prefix="skyrl-vllm-", suffix=".log")
    os.close(handle)
    return Path(path)
