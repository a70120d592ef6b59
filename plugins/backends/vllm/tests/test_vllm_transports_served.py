"""Every transport on a real server: what arrives, what is refused, who may be killed, and a third party's."""

import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.records import GenerateRequest, Sampling
from skyrl_kernel.testing.contracts.engine.reference import Reference
from skyrl_kernel.testing.distributions import make_distribution, on_path
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.gloo import Group
from skyrl_vllm.server import Server
from skyrl_vllm.testing import counter
from skyrl_vllm.transports import server_flags
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo
from skyrl_vllm.transports.parcels import Parcels

ENGINE = "generator.inference_engine"
TOLERANCE = 1e-4
"""Nats, in float32."""
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=60, control_s=60)
ROW = np.arange(3, 43, dtype=np.int32) % 11 + 3
TRANSPORTS: dict[str, type[Parcels]] = {"files": Files, "gloo": Gloo}


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> type[Parcels]:
    return TRANSPORTS[request.param]


@pytest.fixture
def folder(models: Mapping[str, Path]) -> Path:
    return models["tied"]


@pytest.fixture
def server(servers: Any, folder: Path) -> Server:
    """Others have used it, so that its weights may be any."""
    started: Server = servers.start(folder)
    servers.is_new = False
    return started


@pytest.fixture(scope="session")
def references(models: Mapping[str, Path]) -> list[Reference]:
    first = Reference(AutoModelForCausalLM.from_pretrained(models["tied"], dtype=torch.float32))
    return [first, *(first.perturbed(seed, 0.02) for seed in (1, 2, 3))]


def attached(folder: Path, url: str, make: Any) -> VllmEngine:
    engine = VllmEngine(url, folder, deadlines=DEADLINES)
    engine.use_transport(make)
    return engine


async def update(engine: VllmEngine, reference: Reference, version: int) -> None:
    await engine.begin_update(version)
    await engine.apply_update(reference.weights())
    await engine.finish_update(version)


async def update_in_two(
    engine: VllmEngine, weights: list[tuple[str, torch.Tensor]], version: int
) -> None:
    await engine.begin_update(version)
    await engine.apply_update(weights[:5])
    await engine.apply_update(weights[5:])
    await engine.finish_update(version)


async def difference(engine: VllmEngine, reference: Reference) -> float:
    """Largest of the log-probs of `ROW`, in nats."""
    (found,) = await engine.logprobs([ROW], temperature=1.0)
    return float(np.abs(found - reference.logprobs(ROW)).max())


def use(engine: VllmEngine, body: Callable[[VllmEngine], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        try:
            await body(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def test_weights_arrive_and_the_ones_before_are_others(
    server: Server, folder: Path, references: list[Reference], transport: type[Parcels]
) -> None:
    async def body(engine: VllmEngine) -> None:
        for version, reference in enumerate(references[:3], start=1):
            assert version == 1 or await difference(engine, reference) > 100 * TOLERANCE
            await update(engine, reference, version)
            assert await difference(engine, reference) <= TOLERANCE

    use(attached(folder, server.url, transport), body)


def test_weights_may_come_in_several_parcels(
    server: Server, folder: Path, references: list[Reference], transport: type[Parcels]
) -> None:
    async def body(engine: VllmEngine) -> None:
        weights = list(references[1].weights())
        for version in (1, 2):
            await engine.begin_update(version)
            for start in range(0, len(weights), 7):
                await engine.apply_update(weights[start : start + 7])
            await engine.finish_update(version)
        assert await difference(engine, references[1]) <= TOLERANCE

    use(attached(folder, server.url, transport), body)


def test_what_is_written_after_an_update_is_not_the_models(
    server: Server, folder: Path, references: list[Reference]
) -> None:
    """No parameter of the server is a view of the file."""
    made = Files()

    async def body(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)
        for file in made._files:
            file.data.fill_(0x7F)  # 3.4e38 in float32
        assert await difference(engine, references[1]) <= TOLERANCE

    use(attached(folder, server.url, lambda: made), body)


class Disordered:
    """What goes wrong between trainer and server."""

    fault = ""

    async def announce(self, parcel: Mapping[str, Any]) -> None:
        number, update_id = self._sent, self._update_id  # type: ignore[has-type]
        if self.fault == "reordered":
            self._sent = 1 - number
        if self.fault == "of an older update" and number:
            self._update_id = "0" * 32
        for _ in range({"lost": number, "twice": 2}.get(self.fault, 1)):
            await super().announce(parcel)  # type: ignore[misc]
        self._sent, self._update_id = number, update_id


@pytest.mark.parametrize("fault", ["reordered", "of an older update", "lost", "twice"])
def test_parcels_in_disorder_are_refused_and_the_next_update_works(
    server: Server,
    folder: Path,
    references: list[Reference],
    transport: type[Parcels],
    fault: str,
) -> None:
    class Faulty(Disordered, transport):  # type: ignore[misc, valid-type]
        pass

    async def body(engine: VllmEngine) -> None:
        engine.use_transport(transport)
        await update(engine, references[1], 1)
        engine.use_transport(Faulty)
        Faulty.fault = fault
        weights = list(references[2].weights())
        with pytest.raises(WeightSyncError, match="keeps the weights of version 1"):
            await update_in_two(engine, weights, 2)
        assert await difference(engine, references[1]) <= TOLERANCE
        Faulty.fault = ""
        await update(engine, references[2], 2)
        assert await difference(engine, references[2]) <= TOLERANCE

    engine = attached(folder, server.url, transport)
    engine._fleet.deadlines = dataclasses.replace(DEADLINES, update_s=8)
    use(engine, body)


@pytest.mark.parametrize("what", ["integers", "NaN"])
def test_weights_that_are_none_are_refused_before_they_are_announced(
    server: Server,
    folder: Path,
    references: list[Reference],
    transport: type[Parcels],
    what: str,
) -> None:
    weights = dict(references[2].weights())
    name = list(weights)[-1]
    broken = weights[name].clone()
    broken.view(-1)[3] = float("nan")
    weights[name] = weights[name].to(torch.int64) if what == "integers" else broken
    message = f"'{name}' holds " + ("torch.int64" if what == "integers" else "NaN")

    class Watched(transport):  # type: ignore[misc, valid-type]
        async def announce(self, parcel: Mapping[str, Any]) -> None:
            assert parcel is None, "announced"

    async def body(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)
        engine.use_transport(Watched)
        await engine.begin_update(2)
        with pytest.raises(WeightSyncError, match=message):
            await engine.apply_update(weights.items())
        assert await difference(engine, references[1]) <= TOLERANCE

    use(attached(folder, server.url, transport), body)


def test_other_bytes_than_were_sent_are_refused(
    server: Server, folder: Path, references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit, in the buffer of a broadcast; of files, see the conformance suite."""
    broadcast = Group.broadcast

    def damaged(self: Group, octets: torch.Tensor) -> None:
        octets[len(octets) // 2] ^= 1
        broadcast(self, octets)

    async def body(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)
        with monkeypatch.context() as patched:
            patched.setattr(Group, "broadcast", damaged)
            with pytest.raises(WeightSyncError, match="checksum differs"):
                await update(engine, references[2], 2)
        assert await difference(engine, references[1]) <= TOLERANCE
        await update(engine, references[2], 2)
        assert await difference(engine, references[2]) <= TOLERANCE

    use(attached(folder, server.url, Gloo), body)


TRAINER = """
import asyncio, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from skyrl_kernel.testing.contracts.engine.reference import Reference
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.transports.files import Files
from skyrl_vllm.transports.gloo import Gloo

model, url, name = sys.argv[1:]
reference = Reference(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
engine = VllmEngine(url, Path(model))
engine.use_transport({"files": Files, "gloo": Gloo}[name])

async def main():
    await engine.begin_update(1)
    weights = list(reference.weights())
    await engine.apply_update(weights[:5])
    if name == "gloo":  # the announcement is there, the bytes are not
        import skyrl_vllm.gloo
        def never(self, octets):
            print("in the middle", flush=True)
            time.sleep(600)
        skyrl_vllm.gloo.Group.broadcast = never
        await engine.apply_update(weights[5:])
    else:
        print("in the middle", flush=True)
        time.sleep(600)

asyncio.run(main())
"""


def test_a_trainer_that_is_killed_in_the_middle_leaves_a_server_that_works(
    server: Server, folder: Path, references: list[Reference], transport: type[Parcels]
) -> None:
    name = next(key for key, one in TRANSPORTS.items() if one is transport)

    async def before(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)

    async def after(engine: VllmEngine) -> None:
        assert await difference(engine, references[1]) <= TOLERANCE
        (completion,) = await engine.generate([asked(16)])
        assert len(completion.tokens) == 16
        await update(engine, references[2], 1)
        assert await difference(engine, references[2]) <= TOLERANCE

    use(attached(folder, server.url, transport), before)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(folder), server.url, name],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "in the middle\n"
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    use(attached(folder, server.url, transport), after)


def asked(tokens: int) -> GenerateRequest:
    sampling = Sampling(max_tokens=tokens, temperature=1.0, stop_token_ids=())
    return GenerateRequest(tokens=ROW[:8], sampling=sampling, seed=3)


def test_tokens_are_sampled_while_weights_move(
    server: Server, folder: Path, references: list[Reference], transport: type[Parcels]
) -> None:
    """By the server's own count, between the first parcel and the last."""

    async def body(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)
        weights = list(references[1].weights())
        moved = asyncio.Event()
        running = asyncio.create_task(generate_until(moved, engine))
        await engine.begin_update(2)
        await engine.apply_update(weights[:5])
        first = sampled(server)
        until = time.monotonic() + 20
        while sampled(server) <= first + 20:  # a busy machine may need some time
            assert time.monotonic() < until, "nothing is sampled between two parcels"
            await asyncio.sleep(0.1)
        await engine.apply_update(weights[5:])
        await engine.finish_update(2)
        moved.set()
        await running

    use(attached(folder, server.url, transport), body)


async def generate_until(moved: asyncio.Event, engine: VllmEngine) -> None:
    while not moved.is_set():
        await engine.generate([asked(400) for _ in range(4)])


def sampled(server: Server) -> float:
    return counter(server.url, "vllm:generation_tokens_total")


def test_a_server_that_is_killed_in_the_middle_is_an_error_in_time(
    servers: Any, folder: Path, references: list[Reference], transport: type[Parcels]
) -> None:
    server: Server = servers.start(folder)

    async def body(engine: VllmEngine) -> None:
        await update(engine, references[1], 1)
        weights = list(references[2].weights())
        await engine.begin_update(2)
        await engine.apply_update(weights[:5])
        assert server.group is not None
        os.killpg(server.group, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(WeightSyncError, match=r"was lost|failed"):
            await engine.apply_update(weights[5:])
        assert time.monotonic() - began < DEADLINES.update_s

    engine = VllmEngine(server, folder, deadlines=DEADLINES)
    engine.use_transport(transport)
    use(engine, body)
    servers.stop()


# --- a third party's ---------------------------------------------------------------------------------

MAIL = {
    "skyrl_mail.plugin": """
        import base64
        from skyrl_kernel.hookspecs import hookimpl
        from skyrl_vllm.transports import Through
        from skyrl_vllm.transports.parcels import Parcels

        class Mail(Parcels):
            async def send(self, tensors):
                letters = [
                    (name, list(one.shape), base64.b64encode(one.float().numpy().tobytes()).decode())
                    for name, one in tensors
                ]
                await self.announce({"letters": letters})

        @hookimpl
        def sync_weights(name):
            return Through(Mail) if name == "mail" else None
    """,
    "skyrl_mail.inside": """
        import base64
        import torch
        from skyrl_vllm.inside.receiver import Receiver

        class Mailbox(Receiver):
            def receive(self, parcel):
                return [
                    (name, torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32).view(shape))
                    for name, shape, text in parcel["letters"]
                ]

        def register():
            from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
            WeightTransferEngineFactory.register_engine("mail", "skyrl_mail.inside", "Mailbox")
    """,
}
MANIFEST = """
    [mail]
    summary = "Weights in letters."
    slots = ["generator.inference_engine.weight_sync_backend"]
    needs = ["receives_weights", "vllm_weight_transfer"]
"""


@pytest.mark.filterwarnings("ignore:Sending a large body")
def test_a_third_partys_transport_is_a_plugin(
    servers: Any, folder: Path, references: list[Reference], tmp_path: Path
) -> None:
    """Its two halves are found by entry points: the trainer's by the run, the other one by vLLM."""
    site = tmp_path / "site"
    metadata = make_distribution(
        site,
        "skyrl-mail",
        modules=MAIL,
        entry_points={"skyrl.plugins": {"mail": "skyrl_mail.plugin"}},
        files={"skyrl_mail/plugin.toml": textwrap.dedent(MANIFEST)},
    )
    points = metadata / "entry_points.txt"
    both = f"{points.read_text()}\n[vllm.general_plugins]\nmail = skyrl_mail.inside:register\n"
    points.write_text(both)
    servers.stop()
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    flags = ["--dtype", "float32", "--enforce-eager", *server_flags("mail", colocated=True)]
    with on_path(site):
        words = [f"{ENGINE}.backend=vllm", f"{ENGINE}.weight_sync_backend=mail"]
        plan = make_plan(["demo"], [], words)
        sync = plan.stages["sync_weights"].value
        server = Server(folder, flags, log=tmp_path / "log", variables={"PYTHONPATH": path})

        async def body(engine: VllmEngine) -> None:
            assert await difference(engine, references[1]) > 100 * TOLERANCE
            await sync(references[1], engine, 1)
            assert await difference(engine, references[1]) <= TOLERANCE

        use(VllmEngine(server, folder, deadlines=DEADLINES), body)


# --- several workers ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["tensor", "data"])
def test_weights_reach_every_worker_of_a_server(
    servers: Any, folder: Path, references: list[Reference], tmp_path: Path, parallel: str
) -> None:
    """Each of two has half of every layer, or the whole model and some of the requests."""
    servers.stop()
    flags = ["--dtype", "float32", "--enforce-eager", f"--{parallel}-parallel-size", "2"]
    server = Server(folder, flags, log=tmp_path / "log")

    async def differences(engine: VllmEngine, reference: Reference) -> list[float]:
        """Asked at once, so that copies share the work."""
        return await asyncio.gather(*(difference(engine, reference) for _ in range(8)))

    async def body(engine: VllmEngine) -> None:
        for version, (make, reference) in enumerate(
            zip(TRANSPORTS.values(), references[1:], strict=False), start=1
        ):
            engine.use_transport(make)
            assert min(await differences(engine, reference)) > 100 * TOLERANCE
            await update(engine, reference, version)
            assert max(await differences(engine, reference)) <= TOLERANCE
        if parallel == "data":
            with urlopen(f"{server.url}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            told = r'^vllm:prompt_tokens_total{engine="(\d)".*} ([\d.e+]+)$'
            computed = dict(re.findall(told, text, re.MULTILINE))
            assert {copy for copy, tokens in computed.items() if float(tokens)} == {"0", "1"}

    use(VllmEngine(server, folder, deadlines=DEADLINES), body)
