"""The engine without vLLM: what is refused before it is sent, and what is made of servers that fail."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web

from skyrl_kernel.errors import (
    CapabilityError,
    FailureKind,
    TrajectoryError,
    WeightSyncError,
)
from skyrl_kernel.records import GenerateRequest, Piece, Sampling
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.testing import NOWHERE, Handler, Listener, against, answer
from skyrl_vllm.updates import stored_shapes
from skyrl_vllm.wire import GENERATE

PROMPT = np.array([5, 6], dtype=np.int32)


def request() -> GenerateRequest:
    return GenerateRequest(tokens=PROMPT, sampling=Sampling(max_tokens=2), seed=0)


def test_a_long_row_is_not_scored_at_another_temperature(model: Path) -> None:
    row = np.zeros(2**17, dtype=np.int32)
    engine = VllmEngine(NOWHERE, model)
    with pytest.raises(ValueError, match="131072 tokens was to be scored"):
        asyncio.run(engine.logprobs([row], temperature=0.5))


# --- a server that fails, played by one that listens for real ---------------------------------------


def only(path: str, reply: Callable[[], Awaitable[web.StreamResponse]]) -> Any:
    """All is well but ``path``."""

    async def handler(asked: web.Request) -> web.StreamResponse:
        return await reply() if asked.path == path else web.json_response({})

    return handler


async def hang() -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def refuse() -> web.StreamResponse:
    return web.Response(status=500, text="engine dead")


def test_a_request_that_hangs_or_is_refused_costs_its_trajectory(model: Path) -> None:
    for reply, kind in ((hang, FailureKind.TIMEOUT), (refuse, FailureKind.INFRASTRUCTURE)):

        async def use(engine: VllmEngine, kind: FailureKind = kind) -> None:
            with pytest.raises(TrajectoryError, match="vLLM server") as caught:
                await engine.generate([request()])
            assert caught.value.kind is kind

        against(only(GENERATE, reply), model, use)


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("/pause", "policy version 1 was lost: the vLLM server at"),
        ("/start_weight_update", "keeps the weights of version 0"),
        ("/update_weights", "keeps the weights of version 0"),
        ("/finish_weight_update", "has neither the old weights nor the new ones"),
    ],
)
@pytest.mark.parametrize("reply", [hang, refuse])
def test_an_update_that_hangs_or_is_refused_says_which_weights_are_there(
    model: Path, path: str, state: str, reply: Any
) -> None:
    weights = {name: torch.zeros(shape) for name, shape in (stored_shapes(model) or {}).items()}

    async def update(engine: VllmEngine) -> None:
        await engine.begin_update(1)
        await engine.apply_update(weights.items())
        await engine.finish_update(1)

    async def use(engine: VllmEngine) -> None:
        with pytest.raises(WeightSyncError, match=state):
            await update(engine)
        assert engine.version == 0

    against(only(path, reply), model, use)


def test_an_update_is_refused_in_its_own_words_where_the_server_dies_in_it(model: Path) -> None:
    """Neither pausing nor going on works any more; the version that was lost is still told."""
    weights = {name: torch.zeros(shape) for name, shape in (stored_shapes(model) or {}).items()}
    is_dead = False

    async def handler(asked: web.Request) -> web.StreamResponse:
        nonlocal is_dead
        is_dead = is_dead or asked.path == "/pause"
        return await refuse() if is_dead else web.json_response({})

    async def use(engine: VllmEngine) -> None:
        await engine.begin_update(1)
        await engine.apply_update(weights.items())
        with pytest.raises(WeightSyncError, match="policy version 1 was lost: the vLLM server at"):
            await engine.finish_update(1)
        assert engine.version == 0

    against(handler, model, use)


def test_an_abort_that_does_not_stop_is_an_error(model: Path) -> None:
    is_there = asyncio.Event()

    async def reply() -> web.StreamResponse:
        is_there.set()
        return await hang()

    async def use(engine: VllmEngine) -> None:
        task = asyncio.ensure_future(engine.generate([request()]))
        await is_there.wait()
        with pytest.raises(ServerError, match=r"1 requests .* still run 1 s after"):
            await engine.abort()
        task.cancel()
        await asyncio.wait([task])

    against(only(GENERATE, reply), model, use, deadlines=Deadlines(request_s=60, control_s=1))


def test_an_abort_names_requests_as_the_server_registered_them(model: Path) -> None:
    asked: list[str] = []
    told: list[str] = []
    ended = asyncio.Event()

    async def handler(incoming: web.Request) -> web.StreamResponse:
        body = await incoming.json() if incoming.can_read_body else {}
        if incoming.path == GENERATE:
            asked.append(body["request_id"])
            await ended.wait()
            stopped = answer(finish_reason="abort", token_ids=[], logprobs=None)
            return web.json_response(stopped | {"x": 1})
        if incoming.path == "/abort_requests":
            told.extend(body["request_ids"])
            ended.set()
        return web.json_response({})

    async def use(engine: VllmEngine) -> None:
        engine._fleet.deadlines = Deadlines(request_s=5, control_s=5)
        task = asyncio.ensure_future(engine.generate([request()]))
        while not asked:
            await asyncio.sleep(0.01)
        await engine.abort()
        assert (await task)[0].finish_reason == "abort"
        assert told == [f"generate-tokens-{asked[0]}"]

    against(handler, model, use)


def test_a_server_that_is_not_there_or_not_made_for_it_is_named(model: Path) -> None:
    async def use(url: str) -> None:
        engine = VllmEngine(url, model, deadlines=Deadlines(control_s=5))
        try:
            with pytest.raises(
                ServerError, match=r"does not answer.*names servers that run already"
            ):
                await engine.generate([request()])
        finally:
            await engine.close()

    asyncio.run(use(NOWHERE))


def test_weights_are_not_sent_to_another_machine(model: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        await engine.pause()  # it answers
        engine._fleet.clients[0].url = "http://10.0.0.1:8000"
        with pytest.raises(CapabilityError, match="on another machine"):
            await engine.begin_update(1)

    async def well(asked: web.Request) -> web.StreamResponse:
        return web.json_response({})

    against(well, model, use)


@pytest.mark.parametrize("what", ["completion", "stream", "score"])
def test_a_server_that_was_started_anew_ends_the_run(model: Path, what: str) -> None:
    """It answers at the same address, with the weights that it was started with."""
    first = [{"version": "default", "start": 0, "end": 3}]
    told = answer(weight_versions=first) | {"prompt_logprobs": [None, {"6": {"logprob": -1.0}}]}

    async def handler(asked: web.Request) -> web.StreamResponse:
        if what == "stream" and asked.path == GENERATE:
            return web.Response(text=f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n")
        return web.json_response(told if asked.path == GENERATE else {})

    async def use(engine: VllmEngine) -> None:
        asking: dict[str, Callable[[], Awaitable[Any]]] = {
            "completion": lambda: engine.generate([request()]),
            "stream": lambda: all_of(engine),
            "score": lambda: engine.logprobs([PROMPT], temperature=1.0),
        }
        with pytest.raises(ServerError, match=r"was started anew .*The same command goes on"):
            await asking[what]()

    against(handler, model, use)


# --- tokens as they come ----------------------------------------------------------------------------


def events(*lines: Any) -> Handler:
    """A server that streams these events, each as one line."""

    async def handler(incoming: web.Request) -> web.StreamResponse:
        if incoming.path != GENERATE:
            return web.json_response({})
        assert (await incoming.json())["stream"] is True
        response = web.StreamResponse()
        await response.prepare(incoming)
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line)
            await response.write(f"data: {text}\n\n".encode())
        return response

    return handler


def event(*tokens: int, reason: str | None = None, spans: Any = None) -> dict[str, Any]:
    content = {"content": [{"token_id": t, "logprob": -t / 10} for t in tokens]}
    return answer(
        token_ids=list(tokens), logprobs=content, finish_reason=reason, weight_versions=spans
    )


async def all_of(engine: VllmEngine) -> list[Piece]:
    return [piece async for piece in engine.stream(request())]


def test_a_stream_ends_with_the_whole_and_the_versions_of_its_tokens(model: Path) -> None:
    spans = [{"version": "0", "start": 0, "end": 2}, {"version": "1", "start": 2, "end": 3}]

    async def use(engine: VllmEngine) -> None:
        first, second = await all_of(engine)
        assert first.tokens.tolist() == [7, 8]
        assert first.completion is None
        whole = second.completion
        assert whole is not None
        assert whole.tokens.tolist() == [7, 8, 9]
        assert whole.versions.tolist() == [0, 0, 1]
        np.testing.assert_allclose(whole.logprobs, [-0.7, -0.8, -0.9])
        assert whole.finish_reason == "length"

    last = event(9, reason="length", spans=spans)
    against(events(event(7, 8), last, "[DONE]"), model, use)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((event(7),), "broke off"),
        ((event(7), {"error": {"code": 400, "message": "bad"}}), "bad"),
        ((event(7), {"choices": []}, "[DONE]"), "another answer than expected"),
        ((event(7), "[DONE]"), "ended a stream without its completion"),
        (("[DONE]",), "ended a stream without its completion"),
    ],
)
def test_a_stream_that_breaks_off_or_says_so_costs_its_trajectory(
    model: Path, lines: Any, told: str
) -> None:
    async def use(engine: VllmEngine) -> None:
        with pytest.raises(TrajectoryError, match=told):
            await all_of(engine)

    against(events(*lines), model, use)


# --- several servers --------------------------------------------------------------------------------


def test_requests_are_shared_out_and_orders_go_to_every_server(model: Path) -> None:
    servers = [Listener(), Listener(), Listener()]

    async def use(engine: VllmEngine) -> None:
        assert len(await engine.generate([request()] * 12)) == 12
        await engine.pause()
        await engine.resume()

    against([one.reply for one in servers], model, use)
    for server in servers:
        assert server.count(GENERATE) == 4
        assert server.count("/pause") == 1
        assert server.count("/resume") == 2  # and once before all: it may have been left paused
        assert server.count("/update_weight_version") == 1


def test_with_a_router_completions_go_through_it_and_orders_past_it(model: Path) -> None:
    servers, router = [Listener(), Listener()], Listener()

    async def use(engine: VllmEngine) -> None:
        await engine.generate([request()] * 6)
        await engine.pause()

    against([one.reply for one in servers], model, use, router=router.reply)
    assert set(router.asked) == {GENERATE}
    assert router.count(GENERATE) == 6
    assert all(server.count("/pause") == 1 and not server.count(GENERATE) for server in servers)


def test_servers_that_differ_in_log_probs_do_not_have_the_same_weights(model: Path) -> None:
    rows = [np.array([1, 2, 3], dtype=np.int32)]

    async def agree(engine: VllmEngine) -> None:
        (scores,) = await engine.logprobs(rows, temperature=1.0)
        assert scores.tolist() == [0, -1, -1]
        assert await engine.logprobs([], temperature=1.0) == []

    async def differ(engine: VllmEngine) -> None:
        with pytest.raises(WeightSyncError, match=r"both say that they have policy version 0"):
            await engine.logprobs(rows, temperature=1.0)

    against([Listener().reply, Listener(-1.0005).reply], model, agree)
    against([Listener().reply, Listener(-1.002).reply], model, differ)
    against([Listener().reply, Listener(float("nan")).reply], model, differ)


def test_an_order_that_one_of_several_refuses_names_it(model: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        url = engine._fleet.clients[1].url
        with pytest.raises(
            ServerError, match=rf"the vLLM server at {url} failed in /pause.*status 500"
        ):
            await engine.pause()

    against([Listener().reply, only("/pause", refuse)], model, use)


def test_nothing_more_is_asked_once_one_of_several_servers_is_gone(model: Path) -> None:
    """The run ends; until it has, other groups go on asking."""
    whole, dying = Listener(), Listener()

    async def broken(incoming: web.Request) -> web.StreamResponse:
        answered = await dying.reply(incoming)
        if dying.count(GENERATE):  # it dies of the first
            assert incoming.transport is not None
            incoming.transport.abort()
        return answered

    async def use(engine: VllmEngine) -> None:
        url = engine._fleet.clients[1].url
        for asked in (2, 6):
            with pytest.raises(ServerError, match=rf"the vLLM server at {url} does not answer"):
                await engine.generate([request()] * asked)
        assert dying.count(GENERATE) == 1
        assert whole.count(GENERATE) <= 1

    against([whole.reply, broken], model, use)


def test_a_connection_that_breaks_off_costs_its_trajectory_while_the_server_lives(
    model: Path,
) -> None:
    server = Listener()

    async def resets_one(incoming: web.Request) -> web.StreamResponse:
        answered = await server.reply(incoming)
        if incoming.path == GENERATE and server.count(GENERATE) == 1:
            assert incoming.transport is not None
            incoming.transport.abort()
        return answered

    async def use(engine: VllmEngine) -> None:
        with pytest.raises(TrajectoryError, match=r"does not answer .* disconnected") as caught:
            await engine.generate([request()])
        assert caught.value.kind is FailureKind.INFRASTRUCTURE
        (completion,) = await engine.generate([request()])
        assert completion.finish_reason == "length"

    against(resets_one, model, use)
