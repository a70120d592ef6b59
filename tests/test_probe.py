"""The probe: engine and trainer must agree on the same tokens."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.probe import probe
from skyrl_transformers.engine import TransformersEngine
from skyrl_transformers.testing import write_random_model

ROWS = [np.array([5, 6, 7, 8], dtype=np.int32), np.array([9, 8], dtype=np.int32)]


def models(tmp_path: Path, *, same: bool) -> tuple[FsdpTrainer, TransformersEngine]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        write_random_model(path, seed=seed)
    trainer = FsdpTrainer({"policy": paths[0]}, TrainerConfig(bf16=False), device="cpu")
    return trainer, TransformersEngine(paths[0 if same else 1])


def test_equal_weights_agree(tmp_path: Path) -> None:
    trainer, engine = models(tmp_path, same=True)
    asyncio.run(probe(trainer, engine, ROWS, 3, "float32"))


def test_other_weights_are_an_error_that_names_the_version(tmp_path: Path) -> None:
    trainer, engine = models(tmp_path, same=False)
    with pytest.raises(WeightSyncError, match=r"policy version 3, engine and trainer differ by"):
        asyncio.run(probe(trainer, engine, ROWS, 3, "float32"))
