"""On two real servers at once: requests shared out, updates at both, one that dies."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from skyrl_kernel.config.tree import Config, GeneratorConfig, TrainerConfig
from skyrl_kernel.records import GenerateRequest, Sampling
from skyrl_transformers.loading import distinct_tensors, load_causal_lm
from skyrl_vllm import plugin
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import Server

T = TypeVar("T")
TOLERANCE = 1e-4
"""Nats, in float32."""
PROMPTS = [np.arange(5 + place, 30 + place, dtype=np.int32) for place in range(6)]


class Pair:
    """Two servers that a run started, and Hugging Face's module with the same weights."""

    def __init__(self, model: Path, logs: Path) -> None:
        self.model = model
        self.module: PreTrainedModel = load_causal_lm(model)
        flags = ("--dtype", "float32", "--max-num-seqs", "64", "--enforce-eager")
        self.servers = [Server(model, flags, log=logs / f"vllm-{place}.log") for place in range(2)]

    def run(self, use: Callable[[VllmEngine], Awaitable[T]]) -> T:
        async def main() -> T:
            urls = [server.url for server in self.servers]
            deadlines = Deadlines(start_s=300, request_s=120, update_s=60, control_s=30)
            engine = VllmEngine(urls, self.model, deadlines=deadlines)
            try:
                return await use(engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    def completed(self, place: int) -> float:
        """Requests that this server has ended, as it counts them."""
        return counter(self.servers[place].url, "vllm:request_success_total")

    def score(self, row: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(row.astype(np.int64))[None]
        with torch.no_grad():
            logprobs = self.module(input_ids=ids).logits[0].log_softmax(-1)
        return np.concatenate([[0.0], logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()])


def counter(url: str, name: str) -> float:
    """The sum of one of a server's own counters over its labels."""
    text = urlopen(f"{url}/metrics", timeout=10).read().decode()
    found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def request(
    prompt: np.ndarray, seed: int = 0, max_tokens: int = 12, **sampling: Any
) -> GenerateRequest:
    settings = Sampling(max_tokens=max_tokens, **sampling)
    return GenerateRequest(tokens=prompt, sampling=settings, seed=seed)


@pytest.fixture(scope="module")
def pair(
    servers: Any, models: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    servers.stop()  # one more would not fit a small machine
    made = Pair(models["tied"], tmp_path_factory.mktemp("logs"))
    try:

        async def ready() -> None:
            await asyncio.gather(*(server.wait_until_ready(300) for server in made.servers))

        asyncio.run(ready())
        yield made
    finally:
        for server in made.servers:
            server.close()


def test_every_request_is_answered_once_and_both_servers_work(pair: Pair) -> None:
    asked = [request(prompt, seed) for prompt in PROMPTS for seed in range(16)]
    before = [pair.completed(place) for place in range(2)]
    found = pair.run(lambda engine: engine.generate(asked))
    shares = [pair.completed(place) - before[place] for place in range(2)]
    assert sum(shares) == len(found) == 96
    assert min(shares) >= 40
    for one, completion in zip(asked, found, strict=True):
        scored = pair.score(np.concatenate([one.tokens, completion.tokens]))
        np.testing.assert_allclose(completion.logprobs, scored[len(one.tokens) :], atol=TOLERANCE)


def test_an_update_reaches_both_servers_and_requests_in_flight_go_on(pair: Pair) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in distinct_tensors(pair.module).values():
            one.add_(torch.randn(one.shape, generator=generator) * 0.02)

    async def use(engine: VllmEngine) -> None:
        long = [request(prompt, max_tokens=400) for prompt in PROMPTS]
        running = asyncio.ensure_future(engine.generate(long))
        await asyncio.sleep(1.0)
        await engine.begin_update(3)
        await engine.apply_update(distinct_tensors(pair.module).items())
        await engine.finish_update(3)
        versions = Counter(int(v) for one in await running for v in one.versions)
        assert set(versions) == {0, 3}
        rows = [prompt.copy() for prompt in PROMPTS]
        for row, scores in zip(rows, await engine.logprobs(rows, temperature=1.0), strict=True):
            np.testing.assert_allclose(scores, pair.score(row), atol=TOLERANCE)
        for one in await engine.generate([request(prompt) for prompt in PROMPTS]):
            assert set(one.versions) == {3}

    pair.run(use)


def test_an_abort_ends_requests_at_both_servers(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        long = [request(prompt, seed, max_tokens=400) for prompt in PROMPTS for seed in range(8)]
        running = asyncio.ensure_future(engine.generate(long))
        await asyncio.sleep(0.3)
        await engine.abort()
        found = Counter(one.finish_reason for one in await running)
        assert found["abort"] > 24  # a few may have ended by themselves

    pair.run(use)
    for server in pair.servers:
        assert counter(server.url, "vllm:num_requests_running") == 0


def test_a_run_starts_all_its_servers_and_ends_with_the_first_that_dies(
    pair: Pair, tmp_path: Path
) -> None:
    for server in pair.servers:
        server.close()
    (tmp_path / "run").mkdir()
    tree = Config.model_validate(
        {
            "trainer": {
                "ckpt_path": str(tmp_path),
                "run_name": "run",
                "bf16": False,
                "placement": {"colocate_all": False},
            },
            "generator": {"inference_engine": {"num_engines": 2, "max_num_seqs": 64}},
        }
    )
    settings: Any = {GeneratorConfig: tree.generator, TrainerConfig: tree.trainer}
    engine = plugin.make_engine("vllm", settings, pair.model)
    assert isinstance(engine, VllmEngine)

    async def use() -> None:
        try:
            await engine.generate([request(prompt) for prompt in PROMPTS])
            assert {path.name for path in (tmp_path / "run").iterdir()} == {
                "vllm-0.log",
                "vllm-1.log",
            }
            dying = engine._fleet.own[1]
            running = asyncio.ensure_future(
                engine.generate([request(prompt, max_tokens=400) for prompt in PROMPTS])
            )
            await asyncio.sleep(0.5)
            dying.close()
            with pytest.raises(ServerError, match=rf"(?s){dying.url} .*the end of .*vllm-1\.log"):
                await running
        finally:
            await engine.close()

    asyncio.run(use())
