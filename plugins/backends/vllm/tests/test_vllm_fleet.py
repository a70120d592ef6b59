"""On two real servers at once: requests shared out, updates at both, one that dies."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.config.tree import Config
from skyrl_kernel.errors import TrajectoryError
from skyrl_kernel.protocols import Streams
from skyrl_kernel.records import GenerateRequest, Sampling
from skyrl_transformers.loading import distinct_tensors, load_causal_lm
from skyrl_vllm import plugin
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import Server
from skyrl_vllm.testing import counter

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
    async def use(engine: VllmEngine) -> None:
        long = [endless(prompt, seed) for prompt in PROMPTS for seed in range(2)]
        for version in range(1, 6):  # where all have ended before the update comes, once more
            running = asyncio.ensure_future(engine.generate(long))
            await sampling(pair)
            await push(engine, pair, version, size=0.02)
            versions = Counter(int(v) for one in await running for v in one.versions)
            if version in versions:
                break
        assert set(versions) == {version - 1, version}
        rows = [prompt.copy() for prompt in PROMPTS]
        for row, scores in zip(rows, await engine.logprobs(rows, temperature=1.0), strict=True):
            np.testing.assert_allclose(scores, pair.score(row), atol=TOLERANCE)
        for one in await engine.generate([request(prompt) for prompt in PROMPTS]):
            assert set(one.versions) == {version}

    pair.run(use)


def test_an_abort_ends_requests_at_both_servers(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        long = [endless(prompt, seed) for prompt in PROMPTS for seed in range(8)]
        for _ in range(5):  # on a busy machine many may have ended before it is seen that they run
            completions = asyncio.ensure_future(engine.generate(long))
            await sampling(pair)
            await engine.abort()
            found = Counter(one.finish_reason for one in await completions)
            assert await stopped(pair)
            if found["abort"] > len(long) / 2:
                return
        raise AssertionError(f"completions ended so: {found}")

    pair.run(use)


def test_a_stream_gives_the_completion_that_generate_gives(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        assert isinstance(engine, Streams)
        to_the_end = {"ignore_eos": True}  # whatever the weights of the test before say
        asked = request(PROMPTS[0], seed=5, max_tokens=40, temperature=0.9, extra=to_the_end)
        (whole,) = await engine.generate([asked])
        pieces = [piece async for piece in engine.stream(asked)]
        assert len(pieces) > 10
        assert all(piece.completion is None for piece in pieces[:-1])
        streamed = pieces[-1].completion
        assert streamed is not None
        joined = np.concatenate([piece.tokens for piece in pieces])
        assert joined.tolist() == streamed.tokens.tolist() == whole.tokens.tolist()
        np.testing.assert_allclose(streamed.logprobs, whole.logprobs, atol=TOLERANCE)
        assert streamed.versions.tolist() == whole.versions.tolist()
        assert streamed.finish_reason == whole.finish_reason

    pair.run(use)


def running(pair: Pair) -> float:
    """Requests that wait or run at either server."""
    return sum(
        counter(server.url, f"vllm:num_requests_{state}")
        for server in pair.servers
        for state in ("running", "waiting")
    )


async def sampling(pair: Pair) -> None:
    """Return when both servers have sampled some tokens since now."""

    def counts() -> list[float]:
        return [counter(one.url, "vllm:generation_tokens_total") for one in pair.servers]

    before, until = counts(), time.monotonic() + 20
    while min(now - then for now, then in zip(counts(), before, strict=True)) < 8:
        assert time.monotonic() < until, "nothing is sampled"
        await asyncio.sleep(0.02)


async def stopped(pair: Pair) -> bool:
    """Whether nothing runs within 10 s, and no tokens are sampled from then on."""
    until = time.monotonic() + 10
    while running(pair) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    sampled = [counter(one.url, "vllm:generation_tokens_total") for one in pair.servers]
    await asyncio.sleep(0.5)
    later = [counter(one.url, "vllm:generation_tokens_total") for one in pair.servers]
    return running(pair) == 0 and later == sampled


def endless(prompt: np.ndarray, seed: int) -> GenerateRequest:
    """To the last position of the model, whatever ends a completion."""
    return request(prompt, seed, max_tokens=480, extra={"ignore_eos": True})


def test_a_caller_that_is_cancelled_frees_the_servers(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        asked = [endless(prompt, seed) for prompt in PROMPTS for seed in range(16)]
        for _ in range(5):  # all may have ended before it is seen that they run
            task = asyncio.ensure_future(engine.generate(asked))
            await sampling(pair)
            if running(pair) > 0:
                break
            await task
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await stopped(pair)
        assert len(await engine.generate([request(PROMPTS[0])])) == 1

    pair.run(use)


def test_the_deadline_of_a_request_frees_the_servers(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        engine._fleet.deadlines = Deadlines(request_s=0.7, control_s=30)
        asked = [endless(prompt, seed) for prompt in PROMPTS for seed in range(16)]
        with pytest.raises(
            TrajectoryError, match=r"^the vLLM server at \S+ gave no answer .* in 0\.7 s"
        ):
            await engine.generate(asked)
        assert await stopped(pair)

    pair.run(use)


def test_closing_a_stream_frees_its_server(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        async with contextlib.aclosing(engine.stream(endless(PROMPTS[0], 0))) as pieces:
            async for piece in pieces:
                assert len(piece.tokens) >= 1
                break
        assert await stopped(pair)

    pair.run(use)


def test_sampling_parameters_of_vllms_own_do_what_they_say(pair: Pair) -> None:
    async def use(engine: VllmEngine) -> None:
        async def tokens(**extra: Any) -> list[int]:
            asked = [request(prompt, max_tokens=60, extra=extra) for prompt in PROMPTS]
            return [int(t) for one in await engine.generate(asked) for t in one.tokens]

        assert set(await tokens(allowed_token_ids=[7, 8, 9])) <= {7, 8, 9}
        assert len(await tokens(ignore_eos=True)) == 60 * len(PROMPTS)
        plain = await tokens()
        assert await tokens(repetition_penalty=1.5) != plain
        assert await tokens(presence_penalty=1.0, frequency_penalty=1.0) != plain
        assert len(await tokens(min_tokens=50)) >= 50 * len(PROMPTS)
        assert await tokens(skip_reading_prefix_cache=True) == plain

    pair.run(use)


@pytest.mark.parametrize("forgets", [True, False])
def test_requests_in_flight_go_on_with_keys_and_values_of_the_new_weights(
    pair: Pair, forgets: bool
) -> None:
    """Without forgetting, the tokens after the update follow neither model: the negative control."""

    async def use(engine: VllmEngine) -> float:
        engine._fleet.deadlines = Deadlines(request_s=120, update_s=60, control_s=30)
        first = 10 if forgets else 20
        await push(engine, pair, first, size=0.05)
        asked = [endless(prompt, seed) for prompt in PROMPTS for seed in range(2)]
        task = asyncio.ensure_future(engine.generate(asked))
        await sampling(pair)
        await push(engine, pair, first + 1, size=0.05, forgets=forgets)
        apart = []
        for one, completion in zip(asked, await task, strict=True):
            new = completion.versions == first + 1
            if not 0 < new.sum() < len(new):
                continue  # it had ended before, or not begun
            scored = pair.score(np.concatenate([one.tokens, completion.tokens]))[len(one.tokens) :]
            apart.append((completion.logprobs - scored)[new])
        assert apart, "no completion was overtaken by the update"
        return float(np.abs(np.concatenate(apart)).max())

    difference = pair.run(use)
    assert difference <= TOLERANCE if forgets else difference > 100 * TOLERANCE


async def push(
    engine: VllmEngine, pair: Pair, version: int, *, size: float, forgets: bool = False
) -> None:
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for one in distinct_tensors(pair.module).values():
            one.add_(torch.randn(one.shape, generator=generator) * size)
    if forgets:  # as a run does it
        await engine.pause()
    await engine.begin_update(version)
    await engine.apply_update(distinct_tensors(pair.module).items())
    await engine.finish_update(version)
    if forgets:
        await engine.forget_cache()
        await engine.resume()


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
            "generator": {"inference_engine": {"num_engines": 2, "enforce_eager": True}},
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
            asked = [endless(prompt, seed) for prompt in PROMPTS for seed in range(16)]
            task = asyncio.ensure_future(engine.generate(asked))
            await asyncio.sleep(0.3)
            assert dying.group is not None
            os.killpg(dying.group, signal.SIGKILL)
            with pytest.raises(ServerError, match=rf"(?s){dying.url} .*the end of .*vllm-1\.log"):
                await task
        finally:
            await engine.close()

    asyncio.run(use())
