"""Samples of one prompt share its cached prefix, on a real server, while new weights come."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, Sampling
from skyrl_kernel.testing.contracts.engine.reference import Reference, logprobs_across_updates
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import Server
from skyrl_vllm.testing import Listener, Shelf, against, counter
from skyrl_vllm.transports.files import Files
from skyrl_vllm.wire import GENERATE

TOLERANCE = 1e-4
"""Nats, in float32."""
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=60, control_s=60)
BLOCK = 128
"""Tokens of vLLM's cache on a CPU."""
PROMPT = np.random.default_rng(5).integers(0, 256, 2 * BLOCK + 1, dtype=np.int32)
SAMPLES = 8

ATTEMPTS = 5
"""Of which at least one brings an update while requests run."""

Answered = Sequence[Completion]


class EndedError(Exception):
    """On a busy machine what the update should overtake had ended before it came."""


@pytest.fixture
def server(servers: Any, models: Mapping[str, Path]) -> Server:
    """Others have used it, so that its weights may be any."""
    started: Server = servers.start(models["tied"])
    servers.is_new = False
    return started


@pytest.fixture(scope="module")
def weights(models: Mapping[str, Path]) -> Mapping[int, Reference]:
    """By policy version."""
    first = Reference(AutoModelForCausalLM.from_pretrained(models["tied"], dtype=torch.float32))
    return {0: first, 1: first.perturbed(1, 0.02)}


def use(
    server: Server,
    models: Mapping[str, Path],
    weights: Mapping[int, Reference],
    body: Callable[[VllmEngine], Awaitable[None]],
    **settings: Any,
) -> None:
    """An engine at version 0, and another one where the update came too late."""

    async def main() -> None:
        engine = VllmEngine(server.url, models["tied"], deadlines=DEADLINES, **settings)
        try:
            await update(engine, weights, 0)
            await body(engine)
        finally:
            await engine.close()

    for attempt in range(ATTEMPTS):
        with nullcontext() if attempt == ATTEMPTS - 1 else suppress(EndedError):
            return asyncio.run(main())


async def update(engine: VllmEngine, weights: Mapping[int, Reference], version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(weights[version].weights())
    await engine.finish_update(version)


def group(tokens: int, *, seed: int = 0) -> list[GenerateRequest]:
    """Samples of the prompt, of just so many tokens."""
    sampling = Sampling(max_tokens=tokens, extra={"ignore_eos": True})
    return [
        GenerateRequest(tokens=PROMPT, sampling=sampling, seed=seed + place)
        for place in range(SAMPLES)
    ]


def hits(server: Server) -> float:
    """Tokens of prompts that were found in the cache, as the server counts them."""
    return counter(server.url, "vllm:prefix_cache_hits_total")


def sampled(server: Server) -> float:
    return counter(server.url, "vllm:generation_tokens_total")


async def under_way(server: Server, tokens: int) -> None:
    """Return when so many tokens have been sampled since now."""
    before = sampled(server)
    async with asyncio.timeout(30):
        while sampled(server) < before + tokens:
            await asyncio.sleep(0.02)


def given_whole_rows(reference: Reference, one: Completion) -> FloatArray:
    """[C] log-probs of the sampled tokens where all keys and values are of these weights."""
    return reference.logprobs(np.concatenate([PROMPT, one.tokens]))[len(PROMPT) :]


def check_new(answered: Answered, weights: Mapping[int, Reference]) -> None:
    """All of it was computed with the new weights, the prompt too."""
    for one in answered:
        assert set(one.versions.tolist()) == {1}
        np.testing.assert_allclose(one.logprobs, given_whole_rows(weights[1], one), atol=TOLERANCE)


# --- which salt is sent ------------------------------------------------------------------------------


class Salted(Listener):
    """Takes down the salt of each completion, and answers it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: list[str] = []
        self.may_answer = asyncio.Event()

    async def reply(self, incoming: web.Request) -> web.StreamResponse:
        if incoming.path == GENERATE:
            body = await incoming.json()
            if "prompt_logprobs" not in body["sampling_params"]:
                self.versions.append(body["cache_salt"].rpartition("-")[2])
                await self.may_answer.wait()
        return await super().reply(incoming)


def test_a_request_has_the_salt_of_the_weights_at_its_turn(models: Mapping[str, Path]) -> None:
    asked = Salted()

    async def body(engine: VllmEngine) -> None:
        engine.use_transport(Shelf)
        running = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: len(asked.versions) == 1)
        await brought(engine, models["tied"])
        asked.may_answer.set()
        await running
        assert asked.versions == ["0", *["1"] * (SAMPLES - 1)]

    against(asked.reply, models["tied"], body, deadlines=DEADLINES, max_rows=1)


def test_a_request_that_comes_during_a_commit_waits_for_its_end(
    models: Mapping[str, Path],
) -> None:
    asked = Salted()
    asked.may_answer.set()
    late: list[asyncio.Future[list[Completion]]] = []

    async def body(engine: VllmEngine) -> None:
        class Slow(Shelf):
            """A group is asked for between the pause and the load."""

            async def load(self, version: int) -> None:
                late.append(asyncio.ensure_future(engine.generate(group(3))))
                await asyncio.sleep(0.1)
                assert asked.versions == []

        engine.use_transport(Slow)
        await brought(engine, models["tied"])
        await late[0]
        assert asked.versions == ["1"] * SAMPLES

    against(asked.reply, models["tied"], body, deadlines=DEADLINES)


def test_a_request_that_comes_while_its_caller_has_paused_waits_too(
    models: Mapping[str, Path],
) -> None:
    asked = Salted()
    asked.may_answer.set()

    async def body(engine: VllmEngine) -> None:
        engine.use_transport(Shelf)
        await engine.pause()
        waiting = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: len(engine._requests) == SAMPLES)
        await asyncio.sleep(0.1)
        await brought(engine, models["tied"])
        assert asked.versions == []
        await engine.resume()
        await waiting
        assert asked.versions == ["1"] * SAMPLES

    against(asked.reply, models["tied"], body, deadlines=DEADLINES)


def test_a_server_has_what_was_sent_before_it_is_paused(models: Mapping[str, Path]) -> None:
    """The two go over connections of their own, so that nothing else keeps their order."""
    order: list[str] = []
    on_the_way = 0
    is_there = asyncio.Event()

    async def reply(incoming: web.Request) -> web.StreamResponse:
        nonlocal on_the_way
        if incoming.path == GENERATE:
            on_the_way += 1
            await asyncio.sleep(0.1)  # on its way to the engine, which answers questions in turn
            order.append(GENERATE)
            if len(order) == SAMPLES:
                is_there.set()
        elif incoming.path == "/is_paused":
            await is_there.wait()
        elif incoming.path == "/pause":
            order.append("/pause")
        return await Listener().reply(incoming)

    async def body(engine: VllmEngine) -> None:
        running = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: on_the_way == SAMPLES)
        await engine.pause()
        await engine.resume()
        await running
        assert order == [*[GENERATE] * SAMPLES, "/pause"]

    against(reply, models["tied"], body, deadlines=DEADLINES)


def test_an_abort_ends_what_was_not_sent_yet(models: Mapping[str, Path]) -> None:
    asked = Salted()

    async def body(engine: VllmEngine) -> None:
        async def last_piece() -> Completion | None:
            *_, last = [piece async for piece in engine.stream(group(3)[0])]
            return last.completion

        await engine.pause()
        waiting = asyncio.ensure_future(engine.generate(group(3)))
        streamed = asyncio.ensure_future(last_piece())
        await until(lambda: len(engine._requests) == SAMPLES + 1)
        await engine.abort()
        for one in [*await waiting, await streamed]:
            assert one is not None
            assert (one.finish_reason, len(one.tokens)) == ("abort", 0)
        await engine.resume()
        asked.may_answer.set()
        await engine.generate(group(3))
        assert len(asked.versions) == SAMPLES  # the aborted ones were never sent

    against(asked.reply, models["tied"], body, deadlines=DEADLINES)


def test_while_another_process_brings_weights_nothing_is_begun(models: Mapping[str, Path]) -> None:
    asked = Salted()
    asked.may_answer.set()

    async def reply(incoming: web.Request) -> web.StreamResponse:
        if incoming.path == "/weight_info":
            return web.json_response({"weight_version": "1"})
        return await asked.reply(incoming)

    async def body(engine: VllmEngine) -> None:
        await engine.hold()
        waiting = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: len(engine._requests) == SAMPLES)
        await asyncio.sleep(0.1)
        assert asked.versions == []
        await engine.adopt(1)
        await waiting
        assert asked.versions == ["1"] * SAMPLES

    against(reply, models["tied"], body, deadlines=DEADLINES)


def test_what_is_held_for_weights_that_never_come_ends_with_the_engine(
    models: Mapping[str, Path],
) -> None:
    async def body(engine: VllmEngine) -> None:
        await engine.hold()
        held = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: len(engine._requests) == SAMPLES)
        async with asyncio.timeout(10):
            await engine.close()
        assert [one.finish_reason for one in await held] == ["abort"] * SAMPLES

    against(Salted().reply, models["tied"], body, deadlines=DEADLINES)


def test_a_score_waits_behind_no_completion(models: Mapping[str, Path]) -> None:
    """It is the check after a sync, which has a deadline."""
    asked = Salted()

    async def body(engine: VllmEngine) -> None:
        running = asyncio.ensure_future(engine.generate(group(3)))
        await until(lambda: len(asked.versions) == 1)
        async with asyncio.timeout(10):
            await engine.logprobs([np.arange(4, dtype=np.int32)], temperature=1)
        asked.may_answer.set()
        await running

    against(asked.reply, models["tied"], body, deadlines=DEADLINES, max_rows=1)


def test_the_deadline_of_a_request_counts_from_its_turn(models: Mapping[str, Path]) -> None:
    """Eight that take 0.2 s each, one at a time, each with a second."""

    class Slow(Salted):
        async def reply(self, incoming: web.Request) -> web.StreamResponse:
            if incoming.path == GENERATE:
                await asyncio.sleep(0.2)
            return await super().reply(incoming)

    asked = Slow()
    asked.may_answer.set()

    async def body(engine: VllmEngine) -> None:
        assert len(await engine.generate(group(3))) == SAMPLES

    deadlines = Deadlines(start_s=60, request_s=1, update_s=60, control_s=60)
    against(asked.reply, models["tied"], body, deadlines=deadlines, max_rows=1)


async def brought(engine: VllmEngine, model: Path) -> None:
    await engine.begin_update(1)
    await engine.apply_update(load_file(model / "model.safetensors").items())
    await engine.finish_update(1)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


# --- what a server makes of it -----------------------------------------------------------------------


@pytest.mark.parametrize("is_salted", [True, False])
def test_a_group_that_an_update_overtakes_leaves_its_prefix_to_no_later_sample(
    server: Server,
    models: Mapping[str, Path],
    weights: Mapping[int, Reference],
    is_salted: bool,
) -> None:
    async def body(engine: VllmEngine) -> None:
        await engine.begin_update(1)
        await engine.apply_update(weights[1].weights())
        before = hits(server)
        running = asyncio.ensure_future(engine.generate(group(250)))
        await under_way(server, SAMPLES)
        await engine.pause()  # at once: on a busy machine the commit's own comes late
        shared = hits(server)
        if shared < before + (SAMPLES - 1) * 2 * BLOCK:
            raise EndedError
        await engine.finish_update(1)
        await engine.resume()
        check_new(await engine.generate(group(16, seed=1000)), weights)
        assert hits(server) > shared
        overtaken = 0
        for one in await running:
            assert one.versions.tolist() == sorted(one.versions.tolist())
            overtaken += len(set(one.versions.tolist())) > 1
            row = np.concatenate([PROMPT, one.tokens])
            if is_salted:  # it goes on with the keys and values that it has
                expected = logprobs_across_updates(weights, row, one.versions)
            else:  # it has computed them again
                old, new = (given_whole_rows(weights[version], one) for version in (0, 1))
                expected = np.where(one.versions == 1, new, old)
            np.testing.assert_allclose(one.logprobs, expected, atol=TOLERANCE)
        if overtaken < SAMPLES:
            raise EndedError
        check_new(await engine.generate(group(16, seed=2000)), weights)

    use(server, models, weights, body, is_salted=is_salted)


def test_what_waited_for_its_turn_is_computed_with_the_weights_that_sample_it(
    server: Server, models: Mapping[str, Path], weights: Mapping[int, Reference]
) -> None:
    """One sample of the group at a time: when the others begin, its prefix is still cached."""

    async def body(engine: VllmEngine) -> None:
        await engine.begin_update(1)
        await engine.apply_update(weights[1].weights())
        before = hits(server)
        async with aclosing(engine.stream(group(250)[0])) as pieces:
            await anext(pieces)
            await engine.pause()
            waiting = asyncio.ensure_future(engine.generate(group(16, seed=100)))
            await engine.finish_update(1)
            await engine.resume()
            *_, last = [piece async for piece in pieces]
        assert last.completion is not None
        answered = await waiting
        if set(last.completion.versions.tolist()) == {0}:
            raise EndedError
        check_new(answered, weights)
        assert hits(server) > before

    use(server, models, weights, body, max_rows=1)


def test_what_comes_during_a_commit_is_computed_with_the_weights_that_sample_it(
    server: Server, models: Mapping[str, Path], weights: Mapping[int, Reference]
) -> None:
    """The server takes requests while it is paused."""
    late: list[asyncio.Future[list[Completion]]] = []

    async def body(engine: VllmEngine) -> None:
        class Asked(Files):
            """A group is asked for between the pause and the load."""

            async def load(self, version: int) -> None:
                late.append(asyncio.ensure_future(engine.generate(group(16, seed=100))))
                await asyncio.sleep(0.3)
                await super().load(version)

        before = hits(server)
        await engine.generate(group(16))
        assert hits(server) > before
        engine.use_transport(Asked)
        await update(engine, weights, 1)
        check_new(await late[0], weights)

    use(server, models, weights, body)
