"""Trainer and engine in one process: one set of weights, one set of numbers."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.roles import OptimizerConfig, PolicyConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import GenerateRequest, Sampling, Scores, TrainingSample
from skyrl_kernel.torch import LossInputs, LossTerms
from skyrl_transformers.engine import TransformersEngine


def towards_the_sample(inputs: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": -inputs.logprobs})


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sampled_logprobs_are_the_trainer_s_before_and_after_an_update(
    llama: Path, bf16: bool, checkpointing: bool
) -> None:
    config = TrainerConfig(
        bf16=bf16,
        gradient_checkpointing=checkpointing,
        micro_train_batch_size_per_gpu=4,
        micro_forward_batch_size_per_gpu=4,
        policy=PolicyConfig(optimizer_config=OptimizerConfig(lr=1e-2)),
    )
    trainer = FsdpTrainer({"policy": llama}, config, device="cpu")
    engine = TransformersEngine(llama, bf16=bf16)
    engine.share(trainer.module())
    prompt = np.arange(40, 47, dtype=np.int32)
    sampling = Sampling(max_tokens=12, temperature=0.8)
    requests = [GenerateRequest(tokens=prompt, sampling=sampling, seed=i) for i in range(4)]
    likelihoods = []
    for _ in range(2):
        completions = asyncio.run(engine.generate(requests))
        rows = [np.concatenate([prompt, completion.tokens]) for completion in completions]
        scores = trainer.score("policy", rows, temperature=0.8)
        for completion, score in zip(completions, scores, strict=True):
            # bfloat16 rounds differently in a batch of another shape: 8 bits of a logit near 10
            tolerance = 0.3 if bf16 else 1e-5
            np.testing.assert_allclose(completion.logprobs, score[len(prompt) :], atol=tolerance)
        likelihoods.append(trainer.score("policy", [rows[0]], temperature=0.8)[0].sum())
        sample = TrainingSample(
            trajectory_id="p/0",
            group=0,
            trajectory=0,
            tokens=rows[0],
            loss_mask=np.arange(len(rows[0])) >= len(prompt),
            advantages=np.ones(len(rows[0]), dtype=np.float32),
            returns=None,
            sampler_logprobs=None,
            scores=Scores(),
            loss_weights={"policy": np.ones(len(rows[0]), dtype=np.float32)},
        )
        trainer.update([sample], Loss(fn=towards_the_sample), temperature=0.8)
        after = trainer.score("policy", [rows[0]], temperature=0.8)[0].sum()
        assert after > likelihoods[-1]
