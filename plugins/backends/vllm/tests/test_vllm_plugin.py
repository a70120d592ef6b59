"""What the plugin makes of a run's settings, and what importing it costs."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from safetensors.torch import load_file

from skyrl_kernel.config.generator import GeneratorConfig, InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig, TrainerConfig
from skyrl_kernel.config.tree import Config
from skyrl_kernel.errors import ConfigError, WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.rollout.deadline import given_up_after
from skyrl_vllm import plugin
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.testing import NOWHERE, against


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


@pytest.mark.parametrize(
    ("runtime", "visible", "given"), [("local", "3,4,5", "4,5"), ("ray", "4,5", "4,5")]
)
def test_a_gpu_is_left_to_a_trainer_in_the_same_process_alone(
    monkeypatch: pytest.MonkeyPatch, runtime: str, visible: str, given: str
) -> None:
    """Ray shows an engine's process the GPUs of that engine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    trainer = TrainerConfig(runtime=runtime, placement=PlacementConfig(colocate_all=False))
    engine = InferenceEngineConfig(tensor_parallel_size=2)
    assert plugin._gpus(engine, trainer) == [{"CUDA_VISIBLE_DEVICES": given}]


def test_a_server_has_as_many_requests_as_it_computes_at_once() -> None:
    """Also where the process was allowed fewer files; and a user hears where it may not have more."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))\n"
        "from skyrl_kernel.config.generator import InferenceEngineConfig\n"
        "from skyrl_vllm.plugin import _rows_at_once\n"
        "print(_rows_at_once(InferenceEngineConfig(num_engines=2, data_parallel_size=int(sys.argv[2]))))\n"
    )

    def rows(hard: int, copies: int = 1) -> str:
        words = [sys.executable, "-c", script, str(hard), str(copies)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert rows(4096) == "1024\n"
    # 1536 files but for 512, for two servers
    assert rows(1536).endswith("\n512\n")
    assert "512 completions of each server run at a time, not" in rows(1536)
    assert rows(8192, copies=2) == "2048\n"  # max_num_seqs is of each copy of the model
    assert "max_num_seqs=1024 × data_parallel_size=2: this" in rows(1536, copies=2)


@pytest.mark.parametrize("name", ["nccl", "cuda_ipc"])
def test_weights_that_are_not_on_a_gpu_are_not_sent_from_one(name: str) -> None:
    trainer = TrainerConfig.model_validate({"policy": {"fsdp_config": {"cpu_offload": True}}})
    asked = settings(weight_sync_backend=name) | {TrainerConfig: trainer}
    with pytest.raises(ConfigError, match=rf"={name} sends .*cpu_offload=true keeps them .*=auto"):
        plugin.check_engine("vllm", asked)


@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan", "inf"])
def test_a_time_to_start_that_is_none_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(plugin.START_VARIABLE, value)
    told = rf"^{plugin.START_VARIABLE}={value}: .* seconds above 0, such as 1200; .* is 600$"
    with pytest.raises(ConfigError, match=told):
        plugin.check_engine("vllm", settings())


def test_a_time_to_start_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugin.START_VARIABLE, raising=False)
    assert plugin._deadlines(GeneratorConfig()).start_s == 600
    monkeypatch.setenv(plugin.START_VARIABLE, "")
    assert plugin._deadlines(GeneratorConfig()).start_s == 600
    monkeypatch.setenv(plugin.START_VARIABLE, "90.5")
    assert plugin._deadlines(GeneratorConfig()).start_s == 90.5


async def sync(engine: VllmEngine, model: Path) -> None:
    await engine.begin_update(1)
    await engine.apply_update(load_file(model / "model.safetensors").items())


def test_a_server_that_hangs_in_a_sync_is_named_before_the_sync_is_given_up(model: Path) -> None:
    """It does not answer either when the update is taken back."""
    sync_s = 5.0
    generator = settings(weight_sync_timeout_s=sync_s)[GeneratorConfig]

    async def server(request: web.Request) -> web.StreamResponse:
        if request.path in ("/start_weight_update", "/update_weights"):
            await asyncio.sleep(60)
        return web.json_response({})

    async def use(engine: VllmEngine) -> None:
        told = rf"failed: the vLLM server at {engine.addresses[0]} gave no answer to /start_.* in 4\.5 s"
        with pytest.raises(WeightSyncError, match=told):
            await given_up_after(sync(engine, model), sync_s)

    against(server, model, use, deadlines=plugin._deadlines(generator))


def test_an_update_that_failed_is_not_taken_back_for_as_long_as_one_may_take(model: Path) -> None:
    asked: list[str] = []

    async def server(request: web.Request) -> web.StreamResponse:
        if request.path == "/update_weights":
            asked.append(await request.text())
            if len(asked) == 1:
                return web.Response(status=500, text="no room")
            await asyncio.sleep(60)
        return web.json_response({})

    async def use(engine: VllmEngine) -> None:
        with pytest.raises(WeightSyncError, match=r"gave status 500: no room\. The engine keeps"):
            await given_up_after(sync(engine, model), 10)
        assert "cancel" in asked[1]

    against(server, model, use, deadlines=Deadlines(update_s=60, cancel_s=0.1))


def test_importing_the_plugin_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, json, skyrl_vllm.plugin; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "vllm", "aiohttp"} & set(json.loads(done.stdout))
