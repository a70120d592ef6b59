"""The engine without vLLM: what is refused before it is sent, and what is made of servers that fail."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.config.tree import Config
from skyrl_kernel.errors import (
    CapabilityError,
    ConfigError,
    FailureKind,
    PluginLoadError,
    TrajectoryError,
    WeightSyncError,
)
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import GenerateRequest, Piece, Sampling
from skyrl_transformers.loading import distinct_tensors
from skyrl_transformers.testing import write_random_model
from skyrl_vllm import plugin
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.server import Server, _reserved_port
from skyrl_vllm.testing import answer
from skyrl_vllm.updates import Shapes, Updates, stored_shapes
from skyrl_vllm.wire import GENERATE

PROMPT = np.array([5, 6], dtype=np.int32)
NOWHERE = "http://127.0.0.1:1"


def request() -> GenerateRequest:
    return GenerateRequest(tokens=PROMPT, sampling=Sampling(max_tokens=2), seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_model(folder, tie_word_embeddings=True)
    return folder


def test_a_long_row_is_not_scored_at_another_temperature(model: Path) -> None:
    row = np.zeros(2**17, dtype=np.int32)
    engine = VllmEngine(NOWHERE, model)
    with pytest.raises(ValueError, match="131072 tokens was to be scored"):
        asyncio.run(engine.logprobs([row], temperature=0.5))


# --- new weights on their way -----------------------------------------------------------------------


def test_the_names_of_a_model_directory_are_those_of_a_trainers_weights(tmp_path: Path) -> None:
    for tied in (True, False):
        module = write_random_model(tmp_path / str(tied), tie_word_embeddings=tied)
        found = stored_shapes(tmp_path / str(tied))
        assert found == {k: tuple(v.shape) for k, v in distinct_tensors(module).items()}
    assert stored_shapes(tmp_path / "nothing") is None


class Shelf:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    async def open(self, fleet: Fleet) -> None:
        pass

    async def begin(self) -> None:
        self.kept = {}

    async def move(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.kept |= dict(weights)

    async def arrive(self) -> None:
        pass

    async def load(self, version: int) -> None:
        pass

    async def forget(self) -> None:
        self.kept = {}

    def close(self) -> None:
        pass


def test_what_does_not_fit_the_model_is_refused_before_any_server_loads_it() -> None:
    expected: Shapes = {"a": (2,), "b": (1, 3)}
    a, b = torch.zeros(2), torch.zeros(1, 3)

    async def update(*weights: tuple[str, torch.Tensor]) -> None:
        updates = Updates(Fleet([NOWHERE]), Shelf(), expected, version=6)
        await updates.begin(7)
        await updates.apply(weights)
        await updates.arrive(7)
        await updates.load()
        assert updates.version == 7

    asyncio.run(update(("b", b), ("a", a)))  # in any order
    for weights, match in (
        ([("c", a)], "the tensor 'c' is not in the engine's model, which has a, b"),
        ([("a", b)], r"'a' has shape \(1, 3\), the engine's has \(2,\)"),
        ([("a", a), ("a", a)], "'a' came twice"),
        ([("a", a)], r"version 7 was refused: 1 of its 2 tensors are .*: b"),
    ):
        with pytest.raises(WeightSyncError, match=match):
            asyncio.run(update(*weights))


# --- a server that fails, played by one that listens for real ---------------------------------------


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def listen(handler: Handler) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def against(
    handler: Handler | list[Handler],
    model: Path,
    use: Callable[[VllmEngine], Awaitable[None]],
    router: Handler | None = None,
) -> None:
    """Use an engine that is attached to a server which answers ``handler``, or to one for each."""

    async def main() -> None:
        handlers = handler if isinstance(handler, list) else [handler]
        servers = [await listen(one) for one in handlers]
        asked = None if router is None else await listen(router)
        short = Deadlines(request_s=0.3, update_s=0.3, control_s=0.3)
        urls = [url for _, url in servers]
        engine = VllmEngine(urls, model, router=asked and asked[1], deadlines=short)
        try:
            await use(engine)
        finally:
            await engine.close()
            for runner, _ in servers + ([asked] if asked else []):
                await runner.cleanup()

    asyncio.run(main())


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


def test_an_abort_that_does_not_stop_is_an_error(model: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        engine._fleet.deadlines = Deadlines(request_s=5, control_s=0.3)
        task = asyncio.ensure_future(engine.generate([request()]))
        await asyncio.sleep(0.1)
        with pytest.raises(ServerError, match=r"1 requests .* still run 0.3 s after"):
            await engine.abort()
        task.cancel()

    against(only(GENERATE, hang), model, use)


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
        await asyncio.sleep(0.1)
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
    ("lines", "error", "told"),
    [
        ((event(7),), ServerError, "broke off"),
        ((event(7), {"error": {"code": 400, "message": "bad"}}), TrajectoryError, "bad"),
        ((event(7), {"choices": []}, "[DONE]"), TrajectoryError, "another answer than expected"),
    ],
)
def test_a_stream_that_breaks_off_or_says_so_is_an_error(
    model: Path, lines: Any, error: type[Exception], told: str
) -> None:
    async def use(engine: VllmEngine) -> None:
        with pytest.raises(error, match=told):
            await all_of(engine)

    against(events(*lines), model, use)


# --- several servers --------------------------------------------------------------------------------


class Listener:
    """A server that answers everything, and remembers it."""

    def __init__(self, score: float = -1.0) -> None:
        self.score = score
        self.asked: list[str] = []

    async def reply(self, incoming: web.Request) -> web.StreamResponse:
        body = await incoming.json() if incoming.can_read_body else {}
        self.asked.append(incoming.path)
        if "prompt_logprobs" in body.get("sampling_params", {}):
            rest = [{str(token): {"logprob": self.score}} for token in body["token_ids"][1:]]
            return web.json_response({"prompt_logprobs": [None, *rest]})
        return web.json_response(answer() if incoming.path == GENERATE else {})

    def count(self, path: str) -> int:
        return self.asked.count(path)


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

    against([one.reply for one in servers], model, use, router.reply)
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
        if incoming.path == GENERATE and incoming.transport is not None:
            dying.asked.append(GENERATE)
            incoming.transport.abort()
        return await dying.reply(incoming) if incoming.path != GENERATE else web.Response()

    async def use(engine: VllmEngine) -> None:
        url = engine._fleet.clients[1].url
        for asked in (2, 6):
            with pytest.raises(ServerError, match=rf"the vLLM server at {url} does not answer"):
                await engine.generate([request()] * asked)
        assert dying.count(GENERATE) == 1
        assert whole.count(GENERATE) <= 1

    against([whole.reply, broken], model, use)


def test_a_server_has_as_many_requests_as_it_computes_at_once() -> None:
    """Also where the process was allowed fewer files; and a user hears where it may not have more."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))\n"
        "from skyrl_kernel.config.generator import InferenceEngineConfig\n"
        "from skyrl_vllm.plugin import _rows_at_once\n"
        "print(_rows_at_once(InferenceEngineConfig(num_engines=2)))\n"
    )

    def rows(hard: int) -> str:
        words = [sys.executable, "-c", script, str(hard)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert rows(4096) == "1024\n"
    # 1536 files but for 512, for two servers
    assert rows(1536).endswith("\n512\n")
    assert "512 completions of each server run at a time, not" in rows(1536)


def test_a_port_is_held_for_its_server_and_for_nobody_else() -> None:
    held = [_reserved_port() for _ in range(20)]
    ports = {one.getsockname()[1] for one in held}
    assert len(ports) == 20
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(held[0].getsockname())
        server.listen()
        socket.create_connection(held[0].getsockname(), 5).close()
    for one in held:
        one.close()


# --- how it is made ----------------------------------------------------------------------------------


def settings(**engine: Any) -> Any:
    config = Config.model_validate({"generator": {"inference_engine": engine}})
    return {GeneratorConfig: config.generator, TrainerConfig: config.trainer}


def test_an_address_is_attached_to_and_nothing_is_started(model: Path) -> None:
    engine = plugin.make_engine("vllm", settings(external_server_urls=[NOWHERE]), model)
    assert isinstance(engine, Engine)
    assert plugin.make_engine("another", settings(), model) is None
    two = plugin.make_engine("vllm", settings(external_server_urls=[NOWHERE] * 2), model)
    assert isinstance(two, VllmEngine)
    with pytest.raises(ConfigError, match="weights must reach all; name them in"):
        plugin.check_engine("vllm", settings(external_proxy_url=NOWHERE))


def test_without_vllm_a_run_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("no-such-vllm",))
    with pytest.raises(PluginLoadError, match=r"pip install 'skyrl-vllm\[gpu\]'"):
        Server(tmp_path, log=tmp_path / "log")


def test_a_server_that_ends_at_once_is_an_error_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("pytest",))
    monkeypatch.setattr("skyrl_vllm.server.MODULE", "json.tool")  # knows none of vLLM's flags
    server = Server(tmp_path, log=tmp_path / "log")
    engine = VllmEngine(server, tmp_path)

    async def use() -> None:
        try:
            with pytest.raises(ServerError, match=r"did not start.*with code 2.*(?s:.)*usage: "):
                await engine.generate([request()])
        finally:
            await engine.close()

    asyncio.run(use())


def test_a_run_hears_that_servers_load_and_where_their_logs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skyrl_vllm.server.DISTRIBUTIONS", ("pytest",))
    (tmp_path / "idles.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr("skyrl_vllm.server.MODULE", "idles")  # never listens
    monkeypatch.setattr("skyrl_vllm.fleet.SAY_EVERY_S", 0.1)
    server = Server(tmp_path, log=tmp_path / "log", variables={"PYTHONPATH": str(tmp_path)})

    async def use() -> None:
        fleet = Fleet([server], deadlines=Deadlines(start_s=0.5))
        try:
            with pytest.raises(ServerError, match=r"was not ready within 0\.5 s"):
                await fleet.wait_until_ready()
        finally:
            await fleet.close()

    asyncio.run(use())
    told = capsys.readouterr().out
    assert f"vLLM loads: 0 of 1 servers ready after 0 s; log: {tmp_path / 'log'}" in told


def test_the_guard_ends_its_command_when_nobody_holds_its_input(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'w').close(); time.sleep(0.02)"
    guard = subprocess.Popen(
        [sys.executable, "-m", "skyrl_vllm.guard", sys.executable, "-c", child],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert guard.stdin is not None
    until = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.02)
    guard.stdin.close()
    assert guard.wait(30) == 128 + 15
    alive.unlink()
    time.sleep(0.2)
    assert not alive.exists()


def test_importing_the_plugin_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, json, skyrl_vllm.plugin; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "vllm", "aiohttp"} & set(json.loads(done.stdout))
