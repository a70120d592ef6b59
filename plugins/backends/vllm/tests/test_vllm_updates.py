"""Updates as transactions: what may come, and what is refused before any server loads it."""

import asyncio
from pathlib import Path

import pytest
import torch

from skyrl_kernel.errors import WeightSyncError
from skyrl_transformers.loading import distinct_tensors
from skyrl_transformers.testing import write_random_model
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.testing import NOWHERE, Shelf
from skyrl_vllm.updates import Shapes, Updates, stored_shapes


def test_the_names_of_a_model_directory_are_those_of_a_trainers_weights(tmp_path: Path) -> None:
    for tied in (True, False):
        module = write_random_model(tmp_path / str(tied), tie_word_embeddings=tied)
        found = stored_shapes(tmp_path / str(tied))
        assert found == {k: tuple(v.shape) for k, v in distinct_tensors(module).items()}
    assert stored_shapes(tmp_path / "nothing") is None


def test_what_does_not_fit_the_model_is_refused_before_any_server_loads_it() -> None:
    expected: Shapes = {"a": (2,), "b": (1, 3)}
    a, b = torch.zeros(2), torch.zeros(1, 3)

    async def update(*weights: tuple[str, torch.Tensor]) -> None:
        updates = Updates(Fleet([NOWHERE]), Shelf(), expected, version=6)
        await updates.begin(7)
        await updates.apply(weights)
        await updates.arrive(7)
        await updates.load()
        assert updates.version == 7

    asyncio.run(update(("b", b), ("a", a)))  # in any order
    for weights, match in (
        ([("c", a)], "the tensor 'c' is not in the engine's model, which has a, b"),
        ([("a", b)], r"'a' has shape \(1, 3\), the engine's has \(2,\)"),
        ([("a", a), ("a", a)], "'a' came twice"),
        ([("a", a)], r"version 7 was refused: 1 of its 2 tensors are .*: b"),
    ):
        with pytest.raises(WeightSyncError, match=match):
            asyncio.run(update(*weights))
