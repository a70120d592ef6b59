"""Weights into vLLM from a GPU, and a GPU that trainer and server have in turns: needs CUDA and vLLM.

    python benchmarks/gpu_transports.py            all that the GPUs here allow, into gpu_transports.json
    python benchmarks/gpu_transports.py --check    the same calls on a CPU, little of everything: does it run?

| part | says |
|---|---|
| equality | log-probs of server and Hugging Face on the same tokens, before an update and after each |
| latency | of moving and loading, by size and transport |
| sleep | memory of the GPU that is in use, awake, asleep and in between, and what each change takes |
| run | whether a whole run that shares one GPU ends, and how far sampler and trainer are apart |

``cuda_ipc`` and the sleep want one GPU, ``nccl`` two; what is not there is said, and not measured.
A model is random, so nothing is downloaded.
"""

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from machine import describe_machine
from text import table, to_json
from weight_sync import Timed

from skyrl_kernel.defaults.push import push
from skyrl_kernel.protocols import Sleeps
from skyrl_kernel.testing.contracts.engine.reference import Reference
from skyrl_transformers.loading import load_causal_lm
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.devices import visible
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import Server
from skyrl_vllm.transports import Transport, server_flags, server_variables
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo
from skyrl_vllm.transports.native import Native

RESULTS = Path(__file__).with_name("gpu_transports.json")
SHAPES = {  # MB: hidden size, layers
    13: (256, 4),
    64: (512, 5),
    1024: (2048, 5),
}
"""Of a Qwen2 in float32 with a vocabulary of 258."""
UPDATES = 5
LIMIT = 1e-3
"""Most nats between server and reference in float32, as the check of a run after a sync."""
PERTURBED = 0.02
DEADLINES = Deadlines(start_s=300, request_s=120, update_s=120, control_s=60)
ROW = (np.arange(64, dtype=np.int32) * 7) % 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One transport, and the server that it needs."""

    name: str
    gpus: int
    """That trainer and server need."""
    colocated: bool
    make: Callable[[], Transport]


WAYS = (
    Way(name="safetensors", gpus=0, colocated=True, make=Files),
    Way(name="gloo", gpus=0, colocated=True, make=Gloo),
    Way(name="cuda_ipc", gpus=1, colocated=True, make=partial(Native, "ipc")),
    Way(name="nccl", gpus=2, colocated=False, make=partial(Native, "nccl")),
)


@click.command()
@click.option("--check", is_flag=True, help="On a CPU: the smallest model, two updates.")
def main(check: bool) -> None:
    """Measure, print, and write gpu_transports.json."""
    gpus = torch.cuda.device_count()
    if not (gpus or check):
        raise click.ClickException(
            "not run: torch finds no CUDA device here; --check tries the script without one"
        )
    sizes, updates = ([13], 2) if check else ([*SHAPES], UPDATES)
    ways = [way for way in WAYS if way.gpus <= gpus]
    absent = [
        f"{way.name} needs {way.gpus} GPU{'s' * (way.gpus > 1)}" for way in WAYS if way.gpus > gpus
    ]
    results: dict[str, Any] = {
        "machine": {**describe_machine(), "gpus": [*map(_gpu, range(gpus))]},
        "not_checked": absent + ([] if gpus else ["memory that sleep gives back needs 1 GPU"]),
        "transports": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for megabytes in sizes:
            reference = _model(scratch / f"model{megabytes}", megabytes)
            for group in _by_server(ways):
                results["transports"] += asyncio.run(
                    _measure(group, scratch, reference, megabytes, updates)
                )
        results["sleep"] = asyncio.run(_sleep(scratch, sizes[-1]))
        results["run"] = _run(scratch)
    _show(results)
    if not check:
        RESULTS.write_text(to_json(results))
    wrong = [
        f"{one['transport']}, {one['megabytes']} MB"
        for one in (*results["transports"], results["sleep"])
        if not one["after_nats"] <= LIMIT < one["before_nats"]
    ]
    if wrong:
        raise click.ClickException(f"server and reference differ: {', '.join(wrong)}")


def _by_server(ways: Sequence[Way]) -> Iterator[list[Way]]:
    """Transports that one server serves, together."""

    def flags(way: Way) -> list[str]:
        return server_flags(way.name, colocated=way.colocated)

    for _, group in itertools.groupby(ways, key=flags):
        yield [*group]


def _gpu(number: int) -> str:
    found = torch.cuda.get_device_properties(number)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def _model(folder: Path, megabytes: int) -> Reference:
    hidden, layers = SHAPES[megabytes]
    write_random_model(
        folder,
        architecture="qwen2",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        intermediate_size=hidden * 11 // 4,
        max_position_embeddings=2048,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    return Reference(load_causal_lm(folder))


def _server(way: Way, scratch: Path, megabytes: int, *more: str) -> Server:
    """Eager, and with little of the GPU: the trainer's tensors are there too."""
    flags = ("--dtype", "float32", "--max-num-seqs", "8", "--enforce-eager")
    flags += ("--gpu-memory-utilization", "0.4", *more)
    variables = server_variables(way.name, colocated=way.colocated)
    if torch.cuda.is_available():
        variables["CUDA_VISIBLE_DEVICES"] = visible()[0 if way.colocated else 1]
    return Server(
        scratch / f"model{megabytes}",
        (*flags, *server_flags(way.name, colocated=way.colocated)),
        log=scratch / "vllm.log",
        variables=variables,
    )


class _Sent:
    """A trainer as far as `push` knows it: weights of a reference, where a trainer has them."""

    def __init__(self, reference: Reference) -> None:
        place = "cuda" if torch.cuda.is_available() else "cpu"
        self.tensors = {name: one.to(place) for name, one in reference.weights()}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()


async def _difference(engine: VllmEngine, reference: Reference) -> float:
    """Most nats on one token."""
    (found,) = await engine.logprobs([ROW], temperature=1.0)
    return float(np.abs(found - reference.logprobs(ROW)).max())


async def _measure(
    ways: Sequence[Way], scratch: Path, reference: Reference, megabytes: int, updates: int
) -> list[dict[str, Any]]:
    """All transports of one server: equality and latency."""
    server = _server(ways[0], scratch, megabytes)
    engine = VllmEngine(server, scratch / f"model{megabytes}", deadlines=DEADLINES)
    found: list[dict[str, Any]] = []
    versions = itertools.count(1)
    try:
        await engine.started()
        for number, way in enumerate(ways):
            clock = Timed(way.make())
            engine.use_transport(lambda clock=clock: clock)  # type: ignore[misc]
            others = [reference.perturbed(2 * number + seed, PERTURBED) for seed in (1, 2)]
            sent: list[Any] = [_Sent(one) for one in others]
            before = await _difference(engine, others[0])
            seconds: list[tuple[float, float]] = []
            after = 0.0
            for update in range(updates + 1):
                now = update % 2
                await push(sent[now], engine, next(versions))
                seconds.append((clock.moving_s, clock.loading_s))
                after = max(after, await _difference(engine, others[now]))
            moving, loading = zip(*seconds[1:], strict=True)  # the first one meets the server
            found.append(
                {
                    "transport": way.name,
                    "megabytes": megabytes,
                    "bytes": sum(one.nbytes for one in sent[0].tensors.values()),
                    "before_nats": before,
                    "after_nats": after,
                    "first_s": sum(seconds[0]),
                    "moving_s": statistics.median(moving),
                    "loading_s": statistics.median(loading),
                }
            )
    except BaseException:
        click.echo(f"the end of the server's log:\n{server.tail()}")
        raise
    finally:
        await engine.close()
    return found


async def _sleep(scratch: Path, megabytes: int) -> dict[str, Any]:
    """What the GPU holds in each part of a step, and whether the server has the right weights then."""
    way = WAYS[2] if torch.cuda.is_available() else WAYS[0]
    folder = scratch / f"model{megabytes}"
    reference = Reference(load_causal_lm(folder))
    other = reference.perturbed(9, PERTURBED)
    sent: Any = _Sent(other)
    server = _server(way, scratch, megabytes, "--enable-sleep-mode")
    engine = VllmEngine(server, folder, deadlines=DEADLINES)
    engine.use_transport(way.make)
    steps: list[dict[str, Any]] = []

    async def note(name: str, call: Any) -> None:
        began = time.perf_counter()
        await call
        steps.append({"after": name, "seconds": time.perf_counter() - began, "used": _used()})

    try:
        await note("start", engine.started())
        before = await _difference(engine, other)
        assert isinstance(engine, Sleeps)
        await note("sleep, level 2", engine.sleep(2))
        await note("wake weights", engine.wake("weights"))
        await note("sync", push(sent, engine, 1))
        await note("wake kv_cache", engine.wake("kv_cache"))
        after = await _difference(engine, other)
        await note("sleep, level 1", engine.sleep(1))
        await note("wake weights", engine.wake("weights"))
        await note("wake kv_cache", engine.wake("kv_cache"))
        after = max(after, await _difference(engine, other))
    finally:
        await engine.close()
    return {
        "transport": way.name,
        "megabytes": megabytes,
        "before_nats": before,
        "after_nats": after,
        "steps": steps,
    }


def _used() -> float:
    """GiB of the first GPU that all processes together hold."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / 2**30


def _run(scratch: Path) -> dict[str, Any]:
    """The demo with vLLM on the trainer's GPU, for three steps."""
    words = [
        *("run", "--plugin", "demo", "generator.inference_engine.backend=vllm"),
        *("trainer.max_training_steps=3", "trainer.eval_interval=2", "trainer.bf16=false"),
        *(f"trainer.ckpt_path={scratch / 'runs'}", "trainer.ckpt_interval=2"),
        "generator.inference_engine.enforce_eager=true",
        "generator.inference_engine.gpu_memory_utilization=0.4",
    ]
    if torch.cuda.is_available():
        words.append("generator.inference_engine.weight_sync_backend=cuda_ipc")
    # Without a GPU the run is told that there is one: so it takes turns all the same.
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ}
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("skyrl")), *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise click.ClickException(f"the run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    folder = scratch / "runs" / "demo"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "policy/rollout_train_logprobs_abs_diff_max"
    return {
        "seconds": time.perf_counter() - began,
        "sleeps": (folder / "vllm.log").read_text().count('"POST /sleep?level=2 '),
        "nats": max(step[name] for step in steps if name in step),
    }


def _show(results: dict[str, Any]) -> None:
    head = [
        "transport",
        "MB",
        "before, nats",
        "after, nats",
        "first, s",
        "moving, ms",
        "loading, ms",
    ]
    rows = [
        [
            one["transport"],
            f"{one['bytes'] / 1e6:.0f}",
            f"{one['before_nats']:.3g}",
            f"{one['after_nats']:.2g}",
            f"{one['first_s']:.2f}",
            f"{1e3 * one['moving_s']:.0f}",
            f"{1e3 * one['loading_s']:.0f}",
        ]
        for one in results["transports"]
    ]
    click.echo(table(head, rows))
    sleep = results["sleep"]
    rows = [[one["after"], f"{one['seconds']:.2f}", f"{one['used']:.2f}"] for one in sleep["steps"]]
    click.echo(f"\n{table(['after', 'took, s', 'GPU memory in use, GiB'], rows)}")
    click.echo(
        f"\nasleep and back: {sleep['before_nats']:.3g} nats before, {sleep['after_nats']:.2g} after"
    )
    run = results["run"]
    click.echo(
        f"a run of 3 steps on one device: {run['seconds']:.0f} s, the server slept {run['sleeps']} times, "
        f"sampler and trainer {run['nats']:.2g} nats apart at most"
    )
    for one in results["not_checked"]:
        click.echo(f"not checked: {one}")


if __name__ == "__main__":
    main()
