"""Adapters alone on a real server: after every sync its log-probs are those of the trainer."""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.defaults.adapters import adapters
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.records import GenerateRequest, IntArray, Sampling
from skyrl_vllm.adapters import adapter_flags, adapter_variables
from skyrl_vllm.engine import VllmEngine
from skyrl_vllm.fleet import Deadlines
from skyrl_vllm.testing import counter, demo, run
from skyrl_vllm.updates import stored_shapes

TOLERANCE = 1e-4
"""Nats, in float32."""
SLOW_S = 2.0
"""Of receiving an adapter, and of making it."""
SAMPLED = "vllm:generation_tokens_total"
DEADLINES = Deadlines(start_s=540, request_s=240, update_s=120, control_s=60)
ROWS: list[IntArray] = [
    np.random.default_rng(n).integers(0, 250, 60).astype(np.int32) for n in range(4)
]
# PEFT 0.21 asks a model from transformers 5.23 by a name that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def make_trainer(model: Path, rank: int = 4) -> FsdpTrainer:
    lora = {"model": {"lora": {"rank": rank, "alpha": 16}}}
    config = TrainerConfig(bf16=False, gradient_checkpointing=False, policy=lora)
    return FsdpTrainer({"policy": model}, config, device="cpu")


def move(trainer: FsdpTrainer, seed: int) -> None:
    """Give the adapter other numbers, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainer.module().named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


async def difference(engine: VllmEngine, trainer: FsdpTrainer) -> float:
    """Most nats by which the two differ on any token of `ROWS`."""
    found = await engine.logprobs(ROWS, temperature=1.0)
    expected = trainer.score("policy", ROWS, temperature=1.0)
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


async def update(engine: VllmEngine, tensors: list[tuple[str, torch.Tensor]]) -> None:
    await engine.begin_update(3)
    await engine.apply_update(tensors)
    await engine.finish_update(3)


def request(seed: int, tokens: int) -> GenerateRequest:
    sampling = Sampling(max_tokens=tokens, extra={"ignore_eos": True})
    return GenerateRequest(tokens=ROWS[0], sampling=sampling, seed=seed)


async def sample(engine: VllmEngine) -> None:
    while True:
        await engine.generate([request(0, 200)])


def test_an_adapter_alone_makes_the_server_compute_as_the_trainer(
    servers: Any, brake: Any, models: Mapping[str, Path]
) -> None:
    """One server, which takes longest to start: its first weights, syncs, refusals, a slow sync under way."""
    model = models["tied"]
    trainer = make_trainer(model)
    flags = adapter_flags(
        "adapters", trainer._config, stored_shapes(model) or {}, dtype="float32", on_gpu=False
    )
    variables = adapter_variables("adapters") | brake.variables
    server = servers.start(model, variables, flags=flags)

    async def use() -> None:
        engine = VllmEngine(server.url, model, takes_adapters=True, deadlines=DEADLINES)
        assert await difference(engine, trainer) < TOLERANCE  # the first adapter adds nothing
        for version in range(3):
            move(trainer, version)
            assert await difference(engine, trainer) > 0.1  # nothing else brings it
            await adapters(trainer, engine, version)
            assert engine.version == version
            assert await difference(engine, trainer) < TOLERANCE
        await refuses(engine)
        await samples_meanwhile(engine, 1 + await goes_on(engine))
        await engine.close()

    async def refuses(engine: VllmEngine) -> None:
        kept = list(trainer.adapter())
        for tensors, match in (
            (kept[:-1], "1 tensors are missing"),
            (list(make_trainer(model, rank=16).adapter()), "takes up to 8"),
        ):
            with pytest.raises(WeightSyncError, match=match):
                await update(engine, tensors)
            assert engine.version == 2
            assert await difference(engine, trainer) < TOLERANCE

    async def goes_on(engine: VllmEngine) -> int:
        """A request that is begun before a sync ends with the new adapter, and each token says which."""
        for version in range(3, 8):  # where the request ends before the sync, it is done again
            running = asyncio.create_task(engine.generate([request(0, 440)]))
            await asyncio.sleep(0.1)
            move(trainer, version)
            await adapters(trainer, engine, version)
            (across,) = await running
            if across.versions[-1] == version:
                break
        assert sorted({*across.versions.tolist()}) == [version - 1, version]
        (after,) = await engine.generate([request(1, 40)])
        assert {*after.versions.tolist()} == {version}
        row = np.concatenate([ROWS[0], after.tokens])
        (expected,) = trainer.score("policy", [row], temperature=1.0)
        np.testing.assert_allclose(after.logprobs, expected[len(ROWS[0]) :], atol=TOLERANCE)
        assert await difference(engine, trainer) < TOLERANCE
        return version

    async def samples_meanwhile(engine: VllmEngine, version: int) -> None:
        """A server that is slow to receive an adapter, and to make it, samples in every second of both."""
        running = asyncio.create_task(sample(engine))
        move(trainer, version)
        counts = []
        with brake.on(SLOW_S):
            syncing = asyncio.create_task(adapters(trainer, engine, version))
            while not syncing.done():
                counts.append(await asyncio.to_thread(counter, server.url, SAMPLED))
                await asyncio.sleep(1)
        await syncing
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(counts) >= 2 * SLOW_S
        assert all(before < after for before, after in pairwise(counts)), counts
        assert await difference(engine, trainer) < TOLERANCE

    asyncio.run(use())


def test_the_demo_trains_an_adapter_that_goes_alone(servers: Any, tmp_path: Path) -> None:
    """``auto`` takes it; generation runs ahead, so that syncs come while requests run."""
    servers.stop()
    command = demo(
        tmp_path,
        *("trainer.policy.model.lora.rank=8", "trainer.policy.optimizer_config.lr=3e-3"),
        *("trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=2"),
        "trainer.eval_interval=-1",
    )
    steps = run(command, tmp_path)
    config = (tmp_path / "demo" / "config.yaml").read_text()
    assert "weight_sync_backend: adapters" in config
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["failures/trajectories"] == 0
        assert step["async/staleness_violation_count"] == 0
