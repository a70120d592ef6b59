"""The numbers of several ranks are those of one process, with each option of sharding."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from skyrl_fsdp.testing import first_gradients
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.testing.contracts.parity import (
    LEARNING_RATE,
    ROLES,
    ParityContract,
    Recording,
    differences,
    record,
)
from skyrl_kernel.testing.ranks import on_ranks
from skyrl_transformers.testing import write_random_model


def on_a_rank(model: Path, precision: str, options: Mapping[str, Any]) -> Recording:
    torch.set_num_threads(1)
    optimizer = {"lr": LEARNING_RATE, "max_grad_norm": 1e9}
    # In bfloat16 a row's numbers depend on the rows beside it, in one process too: up to 1e-2.
    rows = 1 if precision == "bf16" else 4
    sharding = dict(options.get("fsdp_config", {}))
    config = TrainerConfig(
        bf16=precision == "bf16",
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        micro_train_batch_size_per_gpu=rows,
        micro_forward_batch_size_per_gpu=rows,
        max_tokens_per_microbatch=options.get("max_tokens_per_microbatch", -1),
        policy={"optimizer_config": optimizer, "fsdp_config": sharding},
        critic={"optimizer_config": optimizer, "fsdp_config": sharding},
        ref={"fsdp_config": sharding},
    )
    trainer = FsdpTrainer(dict.fromkeys(ROLES, model), config, device="cpu", timeout_s=60)
    try:
        return record(trainer, first_gradients)
    finally:
        trainer.close()


class TestFsdpParity(ParityContract):
    on_a_rank = staticmethod(on_a_rank)
    marks_of_others = (pytest.mark.slow,)
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "two copies, offload": {"fsdp_config": {"cpu_offload": True, "fsdp_size": 2}},
        "two copies": {"fsdp_config": {"fsdp_size": 2}},
        "a copy per rank": {"fsdp_config": {"fsdp_size": 1}},
        "layers stay": {"fsdp_config": {"reshard_after_forward": False}},
        "offload": {"fsdp_config": {"cpu_offload": True}},
        "recomputed activations": {"gradient_checkpointing": True},
        "token budget": {"max_tokens_per_microbatch": 40},
    }

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _models(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folders = {}
        for architecture in cls.architectures:
            folder = cls.folders[architecture] = tmp_path_factory.mktemp(architecture)
            tied = architecture == "qwen2"
            module = write_random_model(
                folder,
                architecture=architecture,
                tie_word_embeddings=tied,
                initializer_range=0.1,
                seed=3,
            )
            module.bfloat16().save_pretrained(folder)

    def model(self, architecture: str, precision: str = "fp32") -> Path:
        return self.folders[architecture]

    def test_bfloat16_with_float32_weights_between_ranks_is_that_of_one_process(self) -> None:
        """What differs above is the rounding of weights to travel, and nothing else."""
        model = self.model("llama")
        options = {"fsdp_config": {"mixed_precision": {"param_dtype": "fp32"}}}
        (alone,) = on_ranks(1, on_a_rank, model, "bf16", {})
        for recording in on_ranks(2, on_a_rank, model, "bf16", options):
            assert differences(recording, alone, 1e-5) == []

    def test_what_is_wrong_is_found(self) -> None:
        """Half of a gradient, as an average over two ranks would give."""
        (alone,) = on_ranks(1, on_a_rank, self.model("llama"), "fp32", {})
        halved = replace(alone, gradients={k: 0.5 * g for k, g in alone.gradients.items()})
        other = replace(alone, gradients={**alone.gradients, "policy/lm_head.weight": 0.0})
        # A new critic's head is zero, so that its body has no gradient in the first update.
        assert len(differences(halved, alone, 1e-5)) == sum(
            g.any() for g in alone.gradients.values()
        )
        assert len(differences(other, alone, 1e-5)) == 1
        assert differences(alone, alone, 1e-5) == []
