"""Adapters brought alone to an engine that keeps the weights below, and when ``auto`` does that."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from skyrl_kernel.defaults import adapters
from skyrl_kernel.errors import CapabilityError, ConfigError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.testing.scripted import Script, ScriptedEngine, ScriptedTrainer
from skyrl_kernel.transport import RankSync

ENGINE = "generator.inference_engine"
SYNC = f"{ENGINE}.weight_sync_backend"
LORA = "trainer.policy.model.lora.rank=8"


class WithAdapter(ScriptedTrainer):
    """Lends the last tensor of its weights."""

    def adapter(self) -> Iterator[tuple[str, Any]]:
        return iter(list(self.weights())[-1:])


def chosen(*words: str) -> str:
    return make_plan(["vllm"], [], [*words]).stages["sync_weights"].provider.name


def test_it_answers_to_its_own_name_only() -> None:
    assert adapters.sync_weights("adapters") is adapters.adapters
    assert adapters.sync_weights("push") is None


def test_what_the_trainer_lends_goes_to_the_engine_in_one_transaction() -> None:
    script = Script()
    engine, trainer = ScriptedEngine(script), WithAdapter(script)
    asyncio.run(adapters.adapters(trainer, engine, 4))
    assert engine.version == 4


def test_a_trainer_without_an_adapter_to_lend_is_refused() -> None:
    script = Script()
    with pytest.raises(CapabilityError, match="a trainer that lends its adapter, and a Scripted"):
        asyncio.run(adapters.adapters(ScriptedTrainer(script), ScriptedEngine(script), 1))


def test_auto_brings_the_adapter_alone_where_one_is_trained_and_whole_weights_by_name() -> None:
    assert chosen() == "safetensors"
    assert chosen(LORA) == "adapters"
    assert chosen(LORA, f"{SYNC}=gloo") == "gloo"


def test_auto_sends_whole_weights_to_engines_that_run_already_and_through_ray() -> None:
    address = f"{ENGINE}.external_server_urls=['http://127.0.0.1:1']"
    elsewhere = [
        address,
        f"{ENGINE}.run_engines_locally=false",
        "trainer.placement.colocate_all=false",
    ]
    assert chosen(LORA, *elsewhere) == "safetensors"
    assert chosen(LORA, "trainer.runtime=ray") == "push"


def test_the_name_is_refused_where_it_would_bring_nothing_or_cannot_reach() -> None:
    with pytest.raises(
        ConfigError, match=r"adapter to the engine, and .*rank=0 trains all weights"
    ):
        chosen(f"{SYNC}=adapters")
    attached = [
        *(LORA, f"{SYNC}=adapters", "trainer.placement.colocate_all=false"),
        *(f"{ENGINE}.run_engines_locally=false",),
        f"{ENGINE}.external_server_urls=['http://127.0.0.1:1']",
    ]
    missing = "\n".join(make_plan(["vllm"], [], attached).missing)
    assert "needs an engine that the run starts" in missing


def test_between_processes_the_first_rank_brings_it() -> None:
    plan = make_plan(["vllm"], [], [LORA, f"{SYNC}=adapters", "trainer.runtime=ray"])
    assert plan.rank_sync == RankSync(name="adapters", by_each=False, is_adapter=True)
