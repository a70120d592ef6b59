"""Servers that the run did not start: what they say of themselves is compared with what it needs."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from aiohttp import web
from safetensors.torch import load_file

from skyrl_kernel.errors import ConfigError, WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.records import GenerateRequest, Sampling
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.attached import Needs, compare
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import Server
from skyrl_vllm.testing import Handler, Shelf, against
from skyrl_vllm.wire import GENERATE


def needs(model: Path, **changed: Any) -> Needs:
    return Needs(
        **{"model": model, "dtype": "float32", "backend": "skyrl", "sleeps": False, **changed}
    )


def info(model: Path, **changed: Any) -> dict[str, Any]:
    """As vLLM 0.32 has it."""
    of_model = {
        "model": str(model),
        "dtype": "torch.float32",
        "logprobs_mode": "processed_logprobs",
        "enable_sleep_mode": False,
    }
    config = {
        "model_config": of_model | {k: v for k, v in changed.items() if k in of_model},
        "weight_transfer_config": {"backend": "skyrl"},
        "device_config": {"device": "cuda"},
        "speculative_config": None,
    }
    return {"vllm_config": config | {k: v for k, v in changed.items() if k in config}}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (
            {"dtype": "torch.bfloat16"},
            r"computes in bfloat16, the run in float32 \(--dtype float32",
        ),
        ({"logprobs_mode": "raw_logprobs"}, r"raw_logprobs, not those of what it samples from"),
        ({"weight_transfer_config": {"backend": "nccl"}}, r"through nccl, this run .* skyrl"),
        ({"weight_transfer_config": None}, r"through nothing, this run"),
        ({"speculative_config": {"method": "ngram"}}, r"a draft model"),
    ],
)
def test_a_server_with_other_settings_is_refused_with_the_words_that_start_a_right_one(
    model: Path, changed: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ServerError, match=rf"(?s)started otherwise.*{problem}.*--model MODEL"):
        attach(model, answers(info(model, **changed)))
    attach(model, answers(info(model)))


def test_a_server_that_cannot_sleep_is_refused_where_it_shall(model: Path) -> None:
    asked = needs(model, sleeps=True)
    assert compare(info(model), asked)[0] == ["it cannot give back memory (--enable-sleep-mode)"]
    assert compare(info(model, enable_sleep_mode=True), asked) == ([], [])
    assert compare(info(model, device_config={"device": "cpu"}), asked) == ([], [])


def test_a_model_of_another_shape_is_refused_and_a_name_is_told_of(
    model: Path, tmp_path: Path
) -> None:
    write_random_model(tmp_path, tie_word_embeddings=False, hidden_size=64)
    (problem,), _ = compare(info(tmp_path), needs(model))
    assert "hidden_size 64 instead of" in problem
    assert "tie_word_embeddings False instead of True" in problem
    problems, (note,) = compare(info(Path("Qwen/Qwen2.5-0.5B")), needs(model))
    assert problems == []
    assert note.startswith("has the model 'Qwen/Qwen2.5-0.5B', whose files are not here")


def test_what_a_server_does_not_say_is_told_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(model, answers({"vllm_config": {}}, version="0.33.1"))
    told = " ".join(capsys.readouterr().out.split())
    assert "does not say what it computes in, of which distribution" in told
    assert "is version 0.33.1; this package is tested with 0.32.x" in told


def test_a_server_that_was_left_asleep_is_woken(model: Path) -> None:
    asked: list[str] = []
    attach(model, answers(info(model), is_sleeping=True, asked=asked))
    assert "/wake_up" in asked
    asked.clear()
    attach(model, answers(info(model), asked=asked))
    assert "/wake_up" not in asked


@pytest.mark.parametrize(
    ("closed", "problem"),
    [
        ("/server_info", "does not say how it was started .*VLLM_SERVER_DEV_MODE=1"),
        (GENERATE, "takes no token ids .*--enable-scale-out"),
    ],
)
def test_a_server_without_the_routes_of_a_run_is_refused(
    model: Path, closed: str, problem: str
) -> None:
    whole = answers(info(model))

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403) if request.path == closed else await whole(request)

    with pytest.raises(ServerError, match=problem):
        attach(model, handler)


def test_an_address_is_none_where_the_run_starts_its_engine() -> None:
    words = [
        "trainer.placement.colocate_all=false",
        "generator.inference_engine.external_server_urls=[http://127.0.0.1:8000]",
    ]
    with pytest.raises(ConfigError, match=r"run_engines_locally=true starts one; set .*=false"):
        make_plan(["demo", "vllm"], overrides=words)


def test_a_server_as_the_readme_starts_it_is_what_a_run_needs(servers: Any, models: Any) -> None:
    """The names in its answer are this version's; and one in another precision is refused."""
    server = servers.start(models["tied"])

    async def use(dtype: str) -> None:
        engine = VllmEngine(server.url, models["tied"], needs=needs(models["tied"], dtype=dtype))
        try:
            await engine.started()
        finally:
            await engine.close()

    asyncio.run(use("float32"))
    with pytest.raises(ServerError, match=r"computes in float32, the run in bfloat16"):
        asyncio.run(use("bfloat16"))
    with urlopen(f"{server.url}/server_info?config_format=json", timeout=60) as answer:
        assert compare(json.load(answer), needs(models["tied"])) == ([], [])


@pytest.mark.slow
def test_a_server_that_is_started_anew_at_its_address_is_noticed_by_what_it_answers(
    servers: Any, models: Mapping[str, Path], tmp_path: Path
) -> None:
    first = servers.start(models["tied"])
    prompt = np.arange(4, dtype=np.int32)
    asked = GenerateRequest(tokens=prompt, sampling=Sampling(max_tokens=3), seed=0)

    async def use() -> None:
        engine = VllmEngine(first.url, models["tied"])
        try:
            await engine.generate([asked])
            servers.stop()
            flags = ["--dtype", "float32", "--enforce-eager"]
            anew = Server(
                models["tied"], flags, log=tmp_path / "log", port=int(first.url.rpartition(":")[2])
            )
            try:
                await anew.wait_until_ready(540)
                with pytest.raises(ServerError, match=f"{first.url} was started anew"):
                    await engine.logprobs([prompt], temperature=1)
                with pytest.raises(ServerError, match=f"{first.url} was started anew"):
                    await engine.generate([asked])
                other = VllmEngine(first.url, models["tied"])  # as the same command again
                assert len(await other.generate([asked])) == 1
                await other.close()
            finally:
                await asyncio.to_thread(anew.close)
        finally:
            await engine.close()

    asyncio.run(use())


def test_an_engine_goes_on_with_what_another_process_has_brought_its_server(model: Path) -> None:
    async def use(engine: VllmEngine) -> None:
        await engine.adopt(3)
        assert engine.version == 3
        with pytest.raises(
            WeightSyncError, match=r"says that it has policy version 3, and .* version 4"
        ):
            await engine.adopt(4)
        assert engine.version == 3
        with pytest.raises(WeightSyncError, match="versions never go back"):
            await engine.begin_update(2)

    async def server(asked: web.Request) -> web.StreamResponse:
        return web.json_response({"weight_version": "3"} if asked.path == "/weight_info" else {})

    against(server, model, use)


@pytest.mark.parametrize("is_paused", [True, False])
def test_a_server_that_another_process_has_paused_stays_so_through_an_update(
    model: Path, is_paused: bool
) -> None:
    """As the engine's own process holds it until the cache is forgotten, or while it sleeps."""
    asked: list[str] = []

    async def use(engine: VllmEngine) -> None:
        engine.use_transport(Shelf)
        await engine.begin_update(1)
        await engine.apply_update(load_file(model / "model.safetensors").items())
        asked.clear()
        await engine.finish_update(1)

    async def server(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"is_paused": is_paused})

    against(server, model, use)
    assert [path for path in asked if path in ("/pause", "/resume")] == (
        [] if is_paused else ["/pause", "/resume"]
    )


def answers(
    told: Any, *, version: str = "0.32.0", is_sleeping: bool = False, asked: list[str] | None = None
) -> Handler:
    replies: dict[str, Any] = {
        "/server_info": told,
        "/version": {"version": version},
        "/is_sleeping": {"is_sleeping": is_sleeping},
    }

    async def handler(request: web.Request) -> web.StreamResponse:
        if asked is not None:
            asked.append(request.path)
        if request.path == GENERATE:
            return web.Response(status=422)
        return web.json_response(replies.get(request.path, {}))

    return handler


def attach(model: Path, handler: Handler) -> None:
    against(handler, model, VllmEngine.started, deadlines=Deadlines(), needs=needs(model))
