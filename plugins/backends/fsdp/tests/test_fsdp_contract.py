"""The fsdp trainer keeps the contract of trainers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.protocols import Loss, Trainer
from skyrl_kernel.records import IntArray
from skyrl_kernel.testing.contracts import CriticContract, TrainerContract
from skyrl_kernel.torch import LossInputs, LossTerms

SMALL = {
    "bf16": False,
    "gradient_checkpointing": False,
    "micro_train_batch_size_per_gpu": 2,
    "micro_forward_batch_size_per_gpu": 2,
    "policy": {"optimizer_config": {"lr": 1e-2, "weight_decay": 0.1}},
}


class TestFsdp(TrainerContract):
    @pytest.fixture(autouse=True)
    def _model(self, llama: Path) -> None:
        self.folder = llama

    def make(self) -> Trainer:
        return FsdpTrainer({"policy": self.folder}, TrainerConfig(**SMALL))

    def rows(self) -> Sequence[IntArray]:
        return [np.arange(7, 7 + length, dtype=np.int32) for length in (4, 7, 5, 11)]

    def loss(self) -> Loss:
        def fn(inputs: LossInputs) -> LossTerms:
            return LossTerms(terms={"policy": -inputs.logprobs * inputs.advantages})

        return Loss(fn=fn)


class TestFsdpWithMuon(TestFsdp):
    def make(self) -> Trainer:
        config = TrainerConfig(
            bf16=False,
            gradient_checkpointing=True,
            policy={"optimizer_config": {"name": "muon", "lr": 1e-2, "scheduler": "linear"}},
        )
        trainer = FsdpTrainer({"policy": self.folder}, config)
        trainer.set_total_updates(10)
        return trainer


class TestFsdpWithCritic(CriticContract):
    @pytest.fixture(autouse=True)
    def _model(self, llama: Path) -> None:
        self.folder = llama

    def make(self) -> Trainer:
        config = TrainerConfig(
            **SMALL,
            critic={"optimizer_config": {"lr": 1e-2, "weight_decay": 0.1, "num_warmup_steps": 2}},
        )
        return FsdpTrainer({"policy": self.folder, "value": self.folder}, config)

    rows = TestFsdp.rows
    loss = TestFsdp.loss


class TestFsdpWithCriticAndMuon(TestFsdpWithCritic):
    def make(self) -> Trainer:
        optimizer = {"name": "muon", "lr": 1e-2, "scheduler": "linear"}
        config = TrainerConfig(
            bf16=False,
            gradient_checkpointing=True,
            policy={"optimizer_config": optimizer},
            critic={"optimizer_config": optimizer},
        )
        trainer = FsdpTrainer({"policy": self.folder, "value": self.folder}, config)
        trainer.set_total_updates(10)
        return trainer
