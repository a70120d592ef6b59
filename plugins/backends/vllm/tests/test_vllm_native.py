"""vLLM's own transports between GPUs, as far as they go without one: benchmarks/gpu_transports.py needs some."""

import asyncio
import base64
import json
import pickle
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.config.trainer import PlacementConfig, TrainerConfig
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.testing import listening
from skyrl_vllm.transports import Through, cuda_ipc, nccl
from skyrl_vllm.transports.native import Native
from skyrl_vllm.transports.numbering import Numbering, numbering
from skyrl_vllm.transports.sync_client import SyncClient

ENGINE = "generator.inference_engine"


def test_they_send_what_is_on_a_gpu() -> None:
    with pytest.raises(WeightSyncError, match="the tensor 'a' is on cpu, and vLLM's backend nccl"):
        asyncio.run(Native("nccl").move([("a", torch.ones(1))]))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_trainers_half_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    attached = [f"{ENGINE}.run_engines_locally=false", "trainer.placement.colocate_all=false"]
    attached += [f"{ENGINE}.external_server_urls=[http://127.0.0.1:8000]"]
    words = [f"{ENGINE}.backend=vllm", f"{ENGINE}.weight_sync_backend=nccl", *attached]
    (lacking,) = make_plan(["demo"], [], words).missing
    assert lacking.startswith("weight sync through nccl uses vLLM's own code")


def test_a_shared_gpu_passes_weights_on_in_pieces_of_the_size_that_was_asked_for() -> None:
    generator = GeneratorConfig.model_validate(
        {"inference_engine": {"weight_transfer_threshold_cuda_ipc_GB": 0.25}}
    )

    def made(colocated: bool) -> list[Native]:
        trainer = TrainerConfig(placement=PlacementConfig(colocate_all=colocated))
        settings: Any = {GeneratorConfig: generator, TrainerConfig: trainer}
        found = [nccl.sync_weights("nccl", settings), cuda_ipc.sync_weights("cuda_ipc", settings)]
        made = [one.make() for one in found if isinstance(one, Through)]
        return [one for one in made if isinstance(one, Native)]

    assert [one.backend for one in made(True)] == ["ipc", "ipc"]
    assert [one.backend for one in made(False)] == ["nccl", "ipc"]
    assert [one._chunk_bytes for one in made(True)] == [2**28] * 2


def test_the_buffer_holds_the_largest_tensor_and_no_more_than_all() -> None:
    """In bytes of float32: 4 and 40 in all 44; vLLM refuses a tensor that does not fit."""
    native = Native("ipc", chunk_bytes=8)
    native._weights = [("a", torch.ones(1)), ("b", torch.ones(10))]
    assert native._buffer_bytes() == 40
    native._chunk_bytes = 42
    assert native._buffer_bytes() == 42
    native._chunk_bytes = 2**30
    assert native._buffer_bytes() == 44


class Server:
    """Of so many workers; keeps what it was asked, and refuses what vLLM 0.32 refuses."""

    def __init__(self, workers: int = 1, *, is_open: bool = False) -> None:
        self.workers = workers
        self.is_open = is_open
        self.heard: list[tuple[str, Any]] = []

    async def reply(self, asked: web.Request) -> web.StreamResponse:
        if asked.path == "/get_world_size":
            return web.json_response({"world_size": self.workers})
        body = await asked.json() if asked.can_read_body else None
        self.heard.append((asked.path, body))
        update = (body or {}).get("update_info", {})
        refused = {
            "/start_weight_update": self.is_open,
            "/update_weights": not self.is_open or "names" not in update,
            "/finish_weight_update": not self.is_open,
        }
        is_refused = refused.get(asked.path, False)
        if asked.path in refused:
            is_next = asked.path == "/update_weights" and not is_refused
            self.is_open = asked.path == "/start_weight_update" or is_next
        return web.json_response({}, status=500 if is_refused else 200)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.heard]


def drive(servers: list[Server], version: int = 5) -> Numbering:
    """One update as vLLM's trainer side asks for it."""

    def trainer_side(client: SyncClient) -> None:
        client.init_weight_transfer_engine({"rank_offset": 1, "master_port": 7})
        client.start_weight_update()
        client.update_weights({"names": ["a"], "ipc_handles": [{"gpu": (1, b"x")}]})
        client.finish_weight_update()

    async def main() -> Numbering:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(listening(one.reply)) for one in servers]
            fleet = Fleet(urls)
            here = await numbering(fleet)
            client = SyncClient(fleet, here)
            client.version = version
            await asyncio.to_thread(trainer_side, client)
            await fleet.close()
            return here

    return asyncio.run(main())


def test_what_vllms_trainer_side_asks_reaches_every_server() -> None:
    """Of 2 and 4 workers: ranks 1 and 3 are the first of each, of 7 in all."""
    servers = [Server(2), Server(4)]
    assert drive(servers) == Numbering((1, 3), 7)
    inits = [body for one in servers for path, body in one.heard if "init_weight" in path]
    assert inits == [
        {"init_info": {"rank_offset": 1, "master_port": 7}},
        {"init_info": {"rank_offset": 3, "master_port": 7}},
    ]
    assert servers[0].paths[1:] == [
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
    ]
    (info,) = {
        json.dumps(body["update_info"])
        for one in servers
        for path, body in one.heard
        if path == "/update_weights"
    }
    pickled = base64.b64decode(json.loads(info)["ipc_handles_pickled"])
    assert pickle.loads(pickled) == [{"gpu": (1, b"x")}]
    assert servers[1].heard[-1][1] == {"weight_version": "5"}


def test_an_update_that_a_killed_trainer_left_open_is_ended_before_the_next() -> None:
    """Finished as it is: half of a layer would count as half of the next update's."""
    left, other = Server(is_open=True), Server()
    drive([left])
    assert left.paths == [
        *("/init_weight_transfer_engine", "/start_weight_update"),
        *("/update_weights", "/start_weight_update", "/finish_weight_update"),
        *("/start_weight_update", "/update_weights", "/finish_weight_update"),
    ]
    assert left.heard[4][1] is None  # the version stays what it was
    assert not left.is_open
    drive([other])
    assert other.paths.count("/start_weight_update") == 1


def test_a_new_trainer_has_a_running_server_leave_the_one_before() -> None:
    server = Server()

    async def main() -> None:
        async with listening(server.reply) as url:
            fleet, native = Fleet([url], deadlines=Deadlines(update_s=5)), Native("nccl")
            await native.open(fleet)
            with pytest.raises(IndexError):  # there are no weights to meet for
                await native.arrive()
            await fleet.close()

    asyncio.run(main())
    assert server.paths == ["/shutdown_weight_transfer_engine"]


def test_a_real_server_takes_an_update_after_one_that_was_left_open(
    servers: Any, models: Mapping[str, Path]
) -> None:
    """VLLM's own half for NCCL begins and ends updates without a GPU; what moves is not checked here."""
    server = servers.start(models["tied"], backend="nccl")

    async def main() -> None:
        fleet = Fleet([server], deadlines=Deadlines(update_s=60))
        client = SyncClient(fleet, await numbering(fleet))
        await asyncio.to_thread(client.start_weight_update)
        await asyncio.to_thread(client.start_weight_update)
        await asyncio.to_thread(client.finish_weight_update)
        await fleet.clients[0].close()

    asyncio.run(main())
