"""Adapters alone: what a server is started with for them, and what an update of one may hold."""

import asyncio
from typing import Any

import pytest
import torch

from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import ConfigError, WeightSyncError
from skyrl_vllm.adapters import adapter_flags, adapter_variables
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.testing import NOWHERE, Shelf
from skyrl_vllm.updates import Updates

MODEL = {
    "model.embed_tokens.weight": (256, 64),
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.norm.weight": (64,),
    "lm_head.weight": (256, 64),
}
HERE: Any = {"dtype": "float32", "on_gpu": False}
UP = "base_model.model.model.layers.0.mlp.up_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
FIRST = {f"{UP}.lora_A.weight": torch.zeros(8, 64), f"{UP}.lora_B.weight": torch.zeros(96, 8)}
SECOND = {f"{DOWN}.lora_A.weight": torch.zeros(8, 96), f"{DOWN}.lora_B.weight": torch.zeros(64, 8)}


def trained(**lora: Any) -> TrainerConfig:
    return TrainerConfig(policy={"model": {"lora": {"rank": 8, **lora}}})


def test_a_server_is_started_for_the_next_rank_that_vllm_knows_and_without_the_head() -> None:
    *most, down, up = adapter_flags("adapters", trained(rank=20), MODEL, **HERE)
    assert most[:5] == ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "32"]
    assert (down, up) == ("down_proj", "up_proj")
    assert adapter_variables("adapters") == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    assert adapter_flags("safetensors", trained(), MODEL, **HERE) == []
    assert adapter_variables("safetensors") == {}


@pytest.mark.parametrize(
    ("lora", "there", "match"),
    [
        ({"rank": 513}, HERE, "rank=513: vLLM serves adapters up to rank 512.*=safetensors"),
        ({"target_modules": ["lm_head"]}, HERE, "target_modules names lm_head, .*=safetensors"),
        ({}, {**HERE, "on_gpu": True}, "rank=8: vLLM computes no adapter in float32 on a GPU; "),
    ],
)
def test_what_vllm_cannot_compute_with_is_refused_before_a_server_starts(
    lora: dict[str, Any], there: Any, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        adapter_flags("adapters", trained(**lora), MODEL, **there)


async def update(updates: Updates, version: int, tensors: dict[str, torch.Tensor]) -> None:
    await updates.begin(version)
    await updates.apply(tensors.items())
    await updates.arrive(version)
    await updates.load()


def test_an_update_brings_the_adapter_alone_and_all_of_it() -> None:
    async def use() -> None:
        shelf = Shelf()
        updates = Updates(Fleet([NOWHERE]), shelf, MODEL, takes_adapters=True)
        assert not updates.has_adapter
        await update(updates, 0, FIRST | SECOND)
        assert updates.has_adapter
        with pytest.raises(WeightSyncError, match=r"2 tensors are missing: .*down_proj.lora_A"):
            await update(updates, 1, FIRST)  # it had more layers
        assert updates.version == 0
        await update(updates, 1, FIRST | SECOND)
        assert [sorted(one) for one in shelf.loaded] == [sorted(FIRST | SECOND)] * 2

    asyncio.run(use())


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({f"{UP}.lora_A.weight": torch.zeros(8, 64)}, "1 tensors are missing: .*up_proj.lora_B"),
        ({f"{UP}.lora_A.weight": torch.zeros(8, 96)}, r"shape \(8, 96\), and .* \(96, 64\)"),
        ({"lm_head.weight": torch.zeros(256, 64)}, "'lm_head.weight' is not an adapter's"),
        (
            {"base_model.model.other.lora_A.weight": torch.zeros(8, 64)},
            "is on the layer 'other', which the engine's model does not have",
        ),
        ({f"{UP}.lora_A.weight": torch.full((8, 64), torch.nan)}, "NaN or infinity"),
    ],
)
def test_what_is_no_whole_adapter_of_the_model_is_refused(
    tensors: dict[str, torch.Tensor], match: str
) -> None:
    updates = Updates(Fleet([NOWHERE]), Shelf(), MODEL, takes_adapters=True)
    with pytest.raises(WeightSyncError, match=f"(?s)version 0 was refused.*{match}.*adapter\\(\\)"):
        asyncio.run(update(updates, 0, tensors))
    assert not updates.has_adapter
