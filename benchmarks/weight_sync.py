"""What a weight sync takes, by size and transport, and for how long it stops generation.

Updates go as in a run: the kernel's stage `push`, `VllmEngine`, a transport of skyrl-vllm, vLLM's
server. A clock around the transport tells two parts apart:

| part | from | until |
|---|---|---|
| moving | the trainer's tensors | their bytes are in the server's process, checked by it |
| loading | there | the model computes with them |

Beside each update as many bytes are copied in this process's memory, from one place to another
that was written before: a plain copy, which nothing that moves bytes can beat.

In other updates a completion is streamed meanwhile, and what it loses is told by its tokens alone,
as they come to this process. The stop is by how much the tokens around the update took longer than
as many did before it, whatever held them up; the silence is the longest time without one. The pause
is what the engine was told: from the order to pause to the answer to go on.

Two processes of a server poll without sleeping, which is two cores' whole time: this process has been
seen to wait seconds for one (`/proc/self/schedstat`), and then gets the tokens of those seconds at once.
"""

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import click
import numpy as np
import servers
import torch

from skyrl_kernel.defaults.push import push
from skyrl_transformers.loading import distinct_tensors, load_causal_lm
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.transports import Transport
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo

TRANSPORTS: dict[str, Callable[[], Transport]] = {"shared memory": Files, "gloo": Gloo}
SHAPES = {  # MB: hidden size, layers
    13: (256, 4),
    64: (512, 5),
    256: (1024, 5),
    512: (1024, 10),
}
UPDATES = 7
"""Timed ones by transport and size, after one that meets the server and makes files."""
ROWS = 8
SILENCES = 3
"""Updates during generation."""
STREAM_TOKENS = 4000
AROUND_S = 1.0
"""Of generation before and after such an update."""
MORE = 5
"""Tokens after it, at least."""

Tensors = dict[str, torch.Tensor]


class Weights:
    """A trainer as far as `push` knows it: the same tensors again and again."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()


class Timed:
    """A transport with a clock around it.

    Args:
        inner: The transport.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.moving_s = self.loading_s = 0.0

    async def open(self, fleet: Fleet) -> None:
        await self._inner.open(fleet)

    async def begin(self) -> None:
        began = time.perf_counter()
        await self._inner.begin()
        self.moving_s = time.perf_counter() - began

    async def move(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        began = time.perf_counter()
        await self._inner.move(weights)
        self.moving_s += time.perf_counter() - began

    async def arrive(self) -> None:
        began = time.perf_counter()
        await self._inner.arrive()
        self.moving_s += time.perf_counter() - began

    async def load(self, version: int) -> None:
        began = time.perf_counter()
        await self._inner.load(version)
        self.loading_s = time.perf_counter() - began

    async def forget(self) -> None:
        await self._inner.forget()

    def close(self) -> None:
        self._inner.close()


def measure(scratch: Path) -> dict[str, Any]:
    """All sizes, each with a server of its own."""
    torch.set_num_threads(1)
    return {
        "updates": UPDATES,
        "silences": SILENCES,
        "sizes": [measure_size(scratch, megabytes) for megabytes in SHAPES],
    }


def measure_size(scratch: Path, megabytes: int) -> dict[str, Any]:
    """Every transport with one model."""
    hidden, layers = SHAPES[megabytes]
    model = scratch / f"model{megabytes}"
    servers.write_endless_model(
        model,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        intermediate_size=hidden * 11 // 4,
        max_position_embeddings=STREAM_TOKENS + 96,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    tensors = distinct_tensors(load_causal_lm(model))
    size = sum(tensor.nbytes for tensor in tensors.values())
    found: dict[str, Any] = {"bytes": size, "tensors": len(tensors), "transports": {}}
    with servers.served(model, scratch, rows=ROWS, flags=["--enforce-eager"]) as url:
        for name, make in TRANSPORTS.items():
            numbers = asyncio.run(_transport(url, model, tensors, make))
            found["transports"][name] = numbers
            click.echo(f"sync, {size / 1e6:.0f} MB, {name}: {_line(numbers)}")
    return found


async def _transport(
    url: str, model: Path, tensors: Tensors, make: Callable[[], Transport]
) -> dict[str, Any]:
    """Updates alone, then updates during generation."""
    engine = servers.attach(url, model, rows=ROWS)
    assert isinstance(engine, VllmEngine)
    clock = Timed(make())
    engine.use_transport(lambda: clock)
    trainer: Any = Weights(tensors)
    source = np.concatenate([one.detach().numpy().ravel() for one in tensors.values()])
    copy = np.zeros_like(source)
    pauses = _timed_pauses(engine)
    numbers: dict[str, Any] = {"moving_s": [], "loading_s": [], "total_s": [], "copy_s": []}
    versions = itertools.count(1)
    try:
        for number in range(UPDATES + 1):
            began = time.perf_counter()
            np.copyto(copy, source)
            copy_s = time.perf_counter() - began
            began = time.perf_counter()
            await push(trainer, engine, next(versions))
            total_s = time.perf_counter() - began
            if not number:
                numbers["first_s"] = total_s
                continue
            for name, seconds in (
                ("moving_s", clock.moving_s),
                ("loading_s", clock.loading_s),
                ("total_s", total_s),
                ("copy_s", copy_s),
            ):
                numbers[name].append(seconds)
        found: list[Loss] = []
        paused: list[float] = []
        while len(found) < SILENCES:
            async with _stream(url, model) as arrivals:
                await asyncio.sleep(AROUND_S)
                began = time.perf_counter()
                await push(trainer, engine, next(versions))
                ended = time.perf_counter()
                await asyncio.sleep(AROUND_S)
                while arrivals[-MORE] < ended and len(arrivals) < STREAM_TOKENS:
                    await asyncio.sleep(0.01)
            if arrivals[-MORE] < ended:
                click.echo(f"an update took {ended - began:.0f} s, and outlasted its completion")
                continue
            found.append(loss(arrivals, began, ended))
            paused.append(pauses[-1])
        numbers["stopped_s"] = [one.stopped_s for one in found]
        numbers["silence_s"] = [one.silence_s for one in found]
        numbers["usual_s"] = statistics.median(one.usual_s for one in found)
        numbers["paused_s"] = paused
    finally:
        await engine.close()
    copies = zip(numbers["copy_s"], numbers["moving_s"], strict=True)
    numbers["of_copy"] = statistics.median(copy_s / moving_s for copy_s, moving_s in copies)
    return numbers


def _timed_pauses(engine: VllmEngine) -> list[float]:
    """Will hold the seconds of each pause, from the order to the answer to go on."""
    pauses: list[float] = []
    pause, resume = engine.pause, engine.resume
    began = 0.0

    async def timed_pause() -> None:
        nonlocal began
        began = time.perf_counter()
        await pause()

    async def timed_resume() -> None:
        await resume()
        pauses.append(time.perf_counter() - began)

    engine.pause, engine.resume = timed_pause, timed_resume  # type: ignore[method-assign]
    return pauses


@contextlib.asynccontextmanager
async def _stream(url: str, model: Path) -> AsyncIterator[list[float]]:
    """A request that runs meanwhile, and when its tokens came."""
    arrivals: list[float] = []

    async def listen() -> None:
        body = {
            "model": str(model),
            "prompt": [*range(1, 9)],
            "max_tokens": STREAM_TOKENS,
            "stream": True,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/completions", json=body) as answer,
        ):
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    arrivals.append(time.perf_counter())

    task = asyncio.create_task(listen())
    try:
        while not arrivals:
            await asyncio.sleep(0.01)
        yield arrivals
    finally:
        task.cancel()  # the server ends a request whose connection is closed
        await asyncio.gather(task, return_exceptions=True)


class Loss(NamedTuple):
    """What a stream of tokens lost to an update."""

    stopped_s: float
    """By how much the tokens around it were later than at the pace before it."""
    silence_s: float
    """The longest between two tokens around it."""
    usual_s: float
    """The mean between two before it."""


def loss(arrivals: Sequence[float], began: float, ended: float) -> Loss:
    """From the last token before an update to the first after it.

    Tokens that come at once were read late: the last of them is the one that was not.

    Args:
        arrivals: When tokens came, in order, in seconds: several before and several after.
        began: When the update did.
        ended: When the update did.
    """
    last = max(place for place, one in enumerate(arrivals) if one <= began)
    usual_s = (arrivals[last] - arrivals[0]) / last
    in_time = (
        place
        for place, (one, following) in enumerate(itertools.pairwise(arrivals))
        if one >= ended and following - one > usual_s / 2
    )
    first = min(in_time, default=len(arrivals) - 1)
    late_s = arrivals[first] - arrivals[last] - (first - last) * usual_s
    silence_s = max(stop - start for start, stop in itertools.pairwise(arrivals[last : first + 1]))
    return Loss(max(late_s, 0.0), silence_s, usual_s)


def _line(numbers: dict[str, Any]) -> str:
    def ms(name: str) -> str:
        return f"{1e3 * statistics.median(numbers[name]):.0f} ms"

    return (
        f"moving {ms('moving_s')} ({100 * numbers['of_copy']:.0f} % of a copy), loading "
        f"{ms('loading_s')}, all {ms('total_s')}, "
        f"stopped {ms('stopped_s')}, silence {ms('silence_s')}, paused {ms('paused_s')}"
    )
