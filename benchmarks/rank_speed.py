"""Trains on two cores, and prints tokens/s of both together.

python benchmarks/rank_speed.py alone    # two processes, each with a model of its own
python benchmarks/rank_speed.py ranks    # two ranks, each with half of one model
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.ranks import on_ranks
from skyrl_kernel.testing.samples import policy_gradient

ROWS, TOKENS, UPDATES = 16, 192, 3
"""Of each process and update; updates that count, after one that does not."""


def make_model(folder: Path) -> None:
    """A Llama of 12 million random parameters."""
    from skyrl_transformers.testing import write_random_model

    write_random_model(
        folder,
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=TOKENS,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )


def samples(share: int) -> list[TrainingSample]:
    """Rows of one length, so that both have the same to do."""
    rng = np.random.default_rng(share)
    mask = np.ones(TOKENS, bool)
    mask[0] = False
    return [
        TrainingSample(
            trajectory_id=f"prompt/{share}/{number}",
            group=number,
            trajectory=number,
            tokens=rng.integers(0, 4096, TOKENS).astype(np.int32),
            loss_mask=mask,
            advantages=rng.normal(size=TOKENS).astype(np.float32),
            returns=np.zeros(TOKENS, np.float32),
            sampler_logprobs=np.full(TOKENS, -8.0, np.float32),
            scores=Scores(),
            loss_weights={"policy": np.full(TOKENS, 1 / (ROWS * TOKENS), np.float32)},
        )
        for number in range(ROWS)
    ]


def speed(folder: str, layout: str) -> float:
    """Tokens/s of this process."""
    import torch

    from skyrl_fsdp.trainer import FsdpTrainer
    from skyrl_kernel.config.trainer import TrainerConfig
    from skyrl_kernel.protocols import Loss

    torch.set_num_threads(1)
    core = int(os.environ["RANK"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    if layout == "alone":
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    config = TrainerConfig(
        bf16=False,
        gradient_checkpointing=False,
        micro_train_batch_size_per_gpu=4,
        policy={"optimizer_config": {"lr": 1e-5}},
    )
    trainer = FsdpTrainer({"policy": Path(folder)}, config, device="cpu", timeout_s=100)
    batch, loss = samples(core), Loss(fn=policy_gradient)
    trainer.update(batch, loss, temperature=1.0)
    began = time.perf_counter()
    for _ in range(UPDATES):
        trainer.update(batch, loss, temperature=1.0)
    seconds = time.perf_counter() - began
    trainer.close()
    return UPDATES * ROWS * TOKENS / seconds


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        make_model(Path(made))
        print(sum(on_ranks(2, speed, made, sys.argv[1])))
