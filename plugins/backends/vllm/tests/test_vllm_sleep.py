"""A server gives its memory back: what is asked of it and in which order, and runs that share a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from skyrl_kernel.config.generator import InferenceEngineConfig
from skyrl_kernel.config.trainer import PlacementConfig, TrainerConfig
from skyrl_vllm.client import ServerError
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.server import _usable
from skyrl_vllm.settings import sleep_flags
from skyrl_vllm.testing import Listener, against, demo, run
from skyrl_vllm.updates import stored_shapes

SLEEP = "--enable-sleep-mode"


@pytest.mark.parametrize("salted", [True, False])
def test_an_update_in_its_sleep_does_not_let_the_server_compute(model: Path, salted: bool) -> None:
    """Resumed between the two it would compute without a cache."""
    server = Listener()

    async def use(engine: VllmEngine) -> None:
        await engine.sleep(2)
        await engine.wake("weights")
        await engine.begin_update(1)
        shapes = stored_shapes(model) or {}
        await engine.apply_update((n, torch.zeros(shape)) for n, shape in shapes.items())
        await engine.finish_update(1)
        await engine.wake("kv_cache")

    against(server.reply, model, use, deadlines=Deadlines(), is_salted=salted)
    first = server.asked.index("/sleep?level=2")
    assert server.asked[first:] == [
        *("/sleep?level=2", "/wake_up?tags=weights", "/start_weight_update"),
        *("/update_weights", "/collective_rpc", "/update_weights", "/finish_weight_update"),
        "/wake_up?tags=kv_cache",
    ]


def test_an_attached_server_is_awake_after_the_run_however_it_ends(model: Path) -> None:
    server = Listener()

    async def use(engine: VllmEngine) -> None:
        await engine.sleep(2)
        with pytest.raises(ServerError, match="sleeps, and was asked to compute"):
            await engine.logprobs([], temperature=1.0)

    against(server.reply, model, use, deadlines=Deadlines())
    assert server.asked[-1] == "/wake_up"


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
    command = demo(tmp_path, "trainer.eval_interval=2", "trainer.ckpt_interval=2")
    for step in run(command, tmp_path, {"CUDA_VISIBLE_DEVICES": "0"}):
        assert step["failures/trajectories"] == 0
        assert step["policy/rollout_train_logprobs_abs_diff_max"] <= 1e-4
    log = (tmp_path / "demo" / "vllm.log").read_text()
    told = ("/sleep?level=2", "/wake_up?tags=weights", "/wake_up?tags=kv_cache")
    assert [log.count(f'"POST {path} ') for path in told] == [4, 4, 4]  # at first, and in 3 steps
