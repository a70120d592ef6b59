"""Servers are asked until weights have arrived, and go on sampling meanwhile."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from transformers import AutoModelForCausalLM

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.records import GenerateRequest, Sampling
from skyrl_kernel.testing.contracts.engine.reference import Reference
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.inside import HAS_ARRIVED
from skyrl_vllm.testing import Handler, listening
from skyrl_vllm.transports import parcels
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo
from skyrl_vllm.transports.parcels import Parcels

SLOW_S = 4.0
"""Of a parcel."""
TOLERANCE = 1e-4
"""Nats, in float32."""
ROW = np.arange(3, 43, dtype=np.int32) % 11 + 3
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=60, control_s=60)


class Nothing(Parcels):
    """One parcel without tensors."""

    async def send(self, tensors: "Sequence[tuple[str, torch.Tensor]]") -> None:
        await self.announce({})


class Workers:
    """A server whose workers have everything after so many questions.

    Args:
        questions: For each worker.
    """

    def __init__(self, *questions: int) -> None:
        self.questions = questions
        self.asked: list[str] = []

    async def reply(self, request: web.Request) -> web.StreamResponse:
        """A `Handler`."""
        body = await request.json() if request.can_read_body else {}
        waits = body.get("update_info", {}).get("wait")
        self.asked.append("wait" if waits else request.path.removeprefix("/"))
        if request.path != "/collective_rpc":
            return web.json_response({})
        assert body["method"] == HAS_ARRIVED
        number = self.asked.count("collective_rpc")
        results = [{HAS_ARRIVED: number >= needed} for needed in self.questions]
        return web.json_response({"results": results})


def arrive(*handlers: Handler, update_s: float = 10.0) -> None:
    """Move one parcel to servers that answer so."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(listening(one)) for one in handlers]
            fleet, transport = Fleet(urls, deadlines=Deadlines(update_s=update_s)), Nothing()
            stack.push_async_callback(fleet.close)
            stack.callback(transport.close)
            await transport.open(fleet)
            await transport.begin()
            await transport.move([("a", torch.zeros(1))])
            await transport.arrive()

    asyncio.run(main())


def test_what_waits_is_told_when_every_worker_of_every_server_has_everything() -> None:
    servers = Workers(1, 3), Workers(2)
    arrive(*(one.reply for one in servers))
    for one in servers:
        assert one.asked == [
            *("start_weight_update", "update_weights"),
            *("collective_rpc", "collective_rpc", "collective_rpc", "wait"),
        ]


def test_servers_that_receive_for_too_long_are_named() -> None:
    with pytest.raises(TimeoutError, match=r"no sign in 0\.2 s that all of 1 parcels came to http"):
        arrive(Workers(1).reply, Workers(10**9).reply, update_s=0.2)


def test_a_server_with_another_skyrl_vllm_beside_it_is_named() -> None:
    """As vLLM answers where its workers have no such method."""

    async def older(request: web.Request) -> web.StreamResponse:
        if request.path != "/collective_rpc":
            return web.json_response({})
        said = f"Worker failed with error ''CPUWorker' object has no attribute '{HAS_ARRIVED}''"
        return web.json_response({"error": {"message": said}}, status=500)

    with pytest.raises(WeightSyncError, match=r"the vLLM server at http.* another skyrl-vllm"):
        arrive(older)


# --- a real server -----------------------------------------------------------------------------------


async def sample(engine: VllmEngine, times: list[float]) -> None:
    """One completion after the other; ``times`` gets one entry a token."""
    sampling = Sampling(max_tokens=400, temperature=1.0, extra={"ignore_eos": True})
    request = GenerateRequest(tokens=ROW[:8], sampling=sampling, seed=3)
    while True:
        async for piece in engine.stream(request):
            times += [time.monotonic()] * len(piece.tokens)


def served(servers: Any, brake: Any, folder: Path) -> str:
    """URL of a server that the brake slows; it is not new any more."""
    url: str = servers.start(folder, brake.variables).url
    servers.is_new = False
    return url


async def update(engine: VllmEngine, reference: Reference, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(reference.weights())
    await engine.finish_update(version)


async def difference(engine: VllmEngine, reference: Reference) -> float:
    (found,) = await engine.logprobs([ROW], temperature=1.0)
    return float(np.abs(found - reference.logprobs(ROW)).max())


@pytest.mark.parametrize("transport", [Files, Gloo])
def test_tokens_are_sampled_while_a_server_still_receives(
    servers: Any, brake: Any, models: dict[str, Path], transport: type[Parcels]
) -> None:
    folder = models["tied"]
    url = served(servers, brake, folder)
    first = Reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    second = first.perturbed(1, 0.02)
    arrivals: list[tuple[float, float]] = []

    class Noting(transport):  # type: ignore[misc, valid-type]
        async def arrive(self) -> None:
            began = time.monotonic()
            await super().arrive()
            arrivals.append((began, time.monotonic()))

    async def main() -> None:
        engine = VllmEngine(url, folder, deadlines=DEADLINES)
        engine.use_transport(Noting)
        times: list[float] = []
        await update(engine, first, 1)
        running = asyncio.create_task(sample(engine, times))
        try:
            while not times:
                await asyncio.sleep(0.01)
            with brake.on(SLOW_S):
                await update(engine, second, 2)
            assert await difference(engine, second) <= TOLERANCE
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await engine.close()
        began, ended = arrivals[-1]
        assert ended - began > SLOW_S / 2
        # What was on its way at first, and what comes when the wait has ended, does not count.
        during = [one for one in times if began + 0.5 < one < ended - 0.2]
        assert len(during) > 20, json.dumps([one - began for one in times])

    asyncio.run(main())


def test_an_update_at_a_server_that_cannot_be_asked_leaves_one_that_works(
    servers: Any, brake: Any, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models["tied"]
    url = served(servers, brake, folder)
    first = Reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    second = first.perturbed(1, 0.02)

    async def main() -> None:
        engine = VllmEngine(url, folder, deadlines=DEADLINES)
        try:
            await update(engine, first, 1)
            with monkeypatch.context() as patched:
                patched.setattr(parcels, "HAS_ARRIVED", "skyrl_is_of_tomorrow")
                with pytest.raises(WeightSyncError, match="does not know skyrl_is_of_tomorrow"):
                    await update(engine, second, 2)
            assert await difference(engine, first) <= TOLERANCE
            await update(engine, second, 2)
            assert await difference(engine, second) <= TOLERANCE
        finally:
            await engine.close()

    asyncio.run(main())
