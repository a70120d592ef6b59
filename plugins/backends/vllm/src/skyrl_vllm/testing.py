"""For tests: servers that are played by one that listens for real, a transport in memory, short runs."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from aiohttp import web

from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.wire import GENERATE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NOWHERE = "http://127.0.0.1:1"
"""Nobody listens there."""
SOON = Deadlines(request_s=1, update_s=1, cancel_s=1, control_s=1)
"""For servers that hang; one that does not answers within them on a busy machine too."""
PROMPTS = 8
"""Of a step of `demo`."""


def answer(**changed: Any) -> dict[str, Any]:
    """A server's to one request for a completion: tokens 7, 8, 9 of policy versions 3, 4, 4.

    Args:
        changed: Overrides fields of its one choice.
    """
    choice = {
        "finish_reason": "length",
        "token_ids": [7, 8, 9],
        "logprobs": {"content": [{"token_id": t, "logprob": -t / 10} for t in (7, 8, 9)]},
        "weight_versions": [
            {"version": "3", "start": 0, "end": 1},
            {"version": "4", "start": 1, "end": 3},
        ],
    }
    return {"choices": [choice | changed]}


class Listener:
    """A server that answers everything, and remembers what it was asked.

    Args:
        score: Log-prob in nats of every token that it is to score.
    """

    def __init__(self, score: float = -1.0) -> None:
        self.score = score
        self.asked: list[str] = []
        """Paths with their queries."""

    async def reply(self, incoming: web.Request) -> web.StreamResponse:
        """A `Handler`."""
        body = await incoming.json() if incoming.body_exists else {}
        self.asked.append(incoming.path_qs)
        if "prompt_logprobs" in body.get("sampling_params", {}):
            rest = [{str(token): {"logprob": self.score}} for token in body["token_ids"][1:]]
            return web.json_response(answer() | {"prompt_logprobs": [None, *rest]})
        return web.json_response(answer() if incoming.path == GENERATE else {})

    def count(self, path: str) -> int:
        """How often ``path`` was asked, with whatever query."""
        return sum(one.partition("?")[0] == path for one in self.asked)


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[str]:
    """The address of a server that answers ``handler``."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def against(
    handlers: Handler | Sequence[Handler],
    model: Path,
    use: Callable[[VllmEngine], Awaitable[None]],
    *,
    router: Handler | None = None,
    deadlines: Deadlines = SOON,
    **settings: Any,
) -> None:
    """Use an engine that is attached to a server which answers a handler, or to one for each.

    Args:
        handlers: One or more.
        model: The engine's.
        use: Gets the engine, which is closed afterwards.
        router: Answers as one.
        deadlines: The engine's.
        settings: More of the engine's.
    """

    async def main() -> None:
        async with AsyncExitStack() as stack:
            several = [handlers] if callable(handlers) else handlers
            urls = [await stack.enter_async_context(listening(one)) for one in several]
            through = None
            if router is not None:
                through = await stack.enter_async_context(listening(router))
            engine = VllmEngine(urls, model, router=through, deadlines=deadlines, **settings)
            stack.push_async_callback(engine.close)
            await use(engine)

    asyncio.run(main())


class Shelf:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}
        self.loaded: list[dict[str, torch.Tensor]] = []
        """One entry per update."""

    async def open(self, fleet: Fleet) -> None:
        """Nothing to open."""

    async def begin(self) -> None:
        """Forget the update before."""
        self.kept = {}

    async def move(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Keep them."""
        self.kept |= dict(weights)

    async def arrive(self) -> None:
        """Everything is here already."""

    async def load(self, version: int) -> None:
        """Count them as loaded."""
        self.loaded.append(self.kept)

    async def forget(self) -> None:
        """Drop what came."""
        self.kept = {}

    def close(self) -> None:
        """Nothing to close."""


def counter(url: str, name: str) -> float:
    """One of a server's own counters, summed over its labels."""
    with urlopen(f"{url}/metrics", timeout=10) as told:
        text = told.read().decode()
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def demo(folder: Path, *words: str, steps: int = 3) -> list[str]:
    """The command of a short run of the demo that generates with vLLM.

    Args:
        folder: The run's, ``demo``, is made in it.
        words: More of the command line.
        steps: How many.
    """
    return [
        *(str(Path(sys.executable).with_name("skyrl")), "run", "--plugin", "demo"),
        *("generator.inference_engine.backend=vllm", f"trainer.ckpt_path={folder}"),
        *(f"trainer.max_training_steps={steps}", f"trainer.train_batch_size={PROMPTS}"),
        *(f"trainer.policy_mini_batch_size={PROMPTS}", "trainer.eval_before_train=false"),
        *words,
    ]


def attached(url: str) -> list[str]:
    """More words of that command line: the server is one that runs already."""
    return [
        "generator.inference_engine.run_engines_locally=false",
        f"generator.inference_engine.external_server_urls=[{url}]",
        "trainer.placement.colocate_all=false",
    ]


def run(
    command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None
) -> list[Mapping[str, float]]:
    """Metrics of each step of a run that must end well.

    Args:
        command: Such as `demo` makes.
        folder: The one that `demo` had.
        variables: More of the environment.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return metrics(folder)


def metrics(folder: Path) -> list[Mapping[str, float]]:
    """Of each step, as the run of `demo` wrote them."""
    lines = (folder / "demo" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
