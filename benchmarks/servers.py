"""vLLM servers on random models, for the benchmarks that need them."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from skyrl_kernel.config.generator import GeneratorConfig, InferenceEngineConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Engine
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.plugin import NAME, make_engine
from skyrl_vllm.server import Server

START_S = 240.0
PRIORITY = -15
"""Niceness of servers, and of what is measured with them."""


def write_endless_model(folder: Path, **config: object) -> None:
    """A random Qwen2 that ends no completion by itself, so that all have the length asked for."""
    write_random_model(folder, architecture="qwen2", eos_token_id=None, **config)
    file = folder / "tokenizer_config.json"  # vLLM also ends at the tokenizer's
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "eos_token": None}))


@contextlib.contextmanager
def served(
    model: Path, scratch: Path, *, rows: int, flags: Sequence[str] = (), core: int | None = None
) -> Iterator[str]:
    """The address of a server that is ready, started as a run starts it.

    Args:
        model: A Hugging Face directory.
        scratch: For its log.
        rows: Most requests that it computes at a time.
        flags: More of its command line.
        core: All its processes stay on this one; default: on any.
    """
    with pinned(core):
        server = Server(
            model,
            ("--dtype", "float32", "--max-num-seqs", str(rows), *flags),
            log=scratch / "vllm.log",
            # vLLM's own benchmark uses connections again that the server may have closed after 5 s.
            variables={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"},
        )
    try:
        asyncio.run(server.wait_until_ready(START_S))
        with preferred(server.group):
            yield server.url
    except BaseException:
        click.echo(f"the end of the server's log:\n{server.tail()}")
        raise
    finally:
        server.close()


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started meanwhile stay on this core; None lets them be."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def preferred(process: int | None = None) -> Iterator[None]:
    """Let a process, and all others of its session, have their cores before anybody else.

    Linux divides a core among sessions, and only then by niceness among processes. Where the
    system does not permit it, or is another one, nothing changes.

    Args:
        process: Its id; default: this one.
    """
    share = Path(f"/proc/{process or os.getpid()}/autogroup")  # "/autogroup-25 nice 0"
    try:
        before = share.read_text().split()[-1]
        share.write_text(str(PRIORITY))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it has ended
            share.write_text(before)


def attach(url: str, model: Path, *, rows: int) -> Engine:
    """The engine that a run makes for a server it did not start."""
    inference = InferenceEngineConfig(
        external_server_urls=[url], run_engines_locally=False, max_num_seqs=rows
    )
    settings = {
        GeneratorConfig: GeneratorConfig(inference_engine=inference),
        TrainerConfig: TrainerConfig(bf16=False),
    }
    engine = make_engine(NAME, settings, model)
    assert engine is not None
    return engine
