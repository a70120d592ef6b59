"""A server gives its memory back: what is asked of it and in which order, and runs that share a GPU."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from skyrl_kernel.config.generator import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig, TrainerConfig
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.server import _usable
from skyrl_vllm.settings import sleep_flags
from skyrl_vllm.updates import stored_shapes

SLEEP = "--enable-sleep-mode"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_random_model(folder, tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize("salted", [True, False])
def test_an_update_in_its_sleep_does_not_let_the_server_compute(
    listening: Any, model: Path, salted: bool
) -> None:
    """Resumed between the two it would compute without a cache."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        return web.json_response({})

    async def main() -> None:
        async with listening(handler) as url:
            engine = VllmEngine(url, model, is_salted=salted)
            await engine.sleep(2)
            await engine.wake("weights")
            await engine.begin_update(1)
            shapes = stored_shapes(model) or {}
            await engine.apply_update((n, torch.zeros(shape)) for n, shape in shapes.items())
            await engine.finish_update(1)
            await engine.wake("kv_cache")
            await engine.close()

    asyncio.run(main())
    first = asked.index("/sleep?level=2")
    assert asked[first:] == [
        *("/sleep?level=2", "/wake_up?tags=weights", "/start_weight_update"),
        *("/update_weights", "/update_weights", "/finish_weight_update", "/wake_up?tags=kv_cache"),
    ]


def test_an_attached_server_is_awake_after_the_run_however_it_ends(
    listening: Any, model: Path
) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        return web.json_response({})

    async def main() -> None:
        async with listening(handler) as url:
            engine = VllmEngine(url, model)
            await engine.sleep(2)
            with pytest.raises(ServerError, match="sleeps, and was asked to compute"):
                await engine.logprobs([], temperature=1.0)
            await engine.close()

    asyncio.run(main())
    assert asked[-1] == "/wake_up"


def test_a_server_is_started_for_sleep_where_it_shares_a_gpu_or_is_to_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = TrainerConfig()
    apart = TrainerConfig(placement=PlacementConfig(colocate_all=False))
    config = InferenceEngineConfig()
    room = InferenceEngineConfig(offload_kv_for_weight_sync=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert sleep_flags(config, shared) == sleep_flags(room, apart) == [SLEEP]
    assert sleep_flags(config, apart) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sleep_flags(config, shared) == []


def test_the_cpu_build_is_not_asked_for_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_cpu, left in ((True, ["--seed", "1"]), (False, ["--seed", "1", SLEEP])):
        monkeypatch.setattr("skyrl_vllm.server._is_installed", lambda name, found=is_cpu: found)
        assert _usable(["--seed", "1", SLEEP]) == left


def test_a_run_that_shares_a_gpu_hands_it_over_in_every_step(servers: Any, tmp_path: Path) -> None:
    """The CPU build answers as if it slept, and computes nothing until it is woken."""
    servers.stop()
    words = [
        *("run", "--plugin", "demo", "generator.inference_engine.backend=vllm"),
        *("trainer.max_training_steps=3", "trainer.train_batch_size=8"),
        *("trainer.policy_mini_batch_size=8", "trainer.eval_before_train=false"),
        *("trainer.eval_interval=2", f"trainer.ckpt_path={tmp_path}", "trainer.ckpt_interval=2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("skyrl")), *words],
        capture_output=True,
        text=True,
        timeout=560,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for step in steps(tmp_path / "demo"):
        assert step["failures/trajectories"] == 0
        assert step["policy/rollout_train_logprobs_abs_diff_max"] <= 1e-4
    log = (tmp_path / "demo" / "vllm.log").read_text()
    told = ("/sleep?level=2", "/wake_up?tags=weights", "/wake_up?tags=kv_cache")
    assert [log.count(f'"POST {path} ') for path in told] == [4, 4, 4]  # at first, and in 3 steps


def steps(folder: Path) -> list[Mapping[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
