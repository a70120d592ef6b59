"""Several ranks compute what one process computes: gradients, norms, losses, weights, scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skyrl_fsdp.sharding import whole
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.testing.ranks import on_ranks
from skyrl_kernel.torch import LossInputs, LossTerms, TokenMetric

CONFIG = {
    "bf16": False,
    "gradient_checkpointing": False,
    "micro_train_batch_size_per_gpu": 2,
    "micro_forward_batch_size_per_gpu": 2,
    "policy": {"optimizer_config": {"lr": 1e-3, "max_grad_norm": 1e9}},
}
TEMPERATURE = 0.7


def sample(number: int, length: int) -> TrainingSample:
    rng = np.random.default_rng([number, length])
    mask = rng.random(length) < 0.7
    mask[0], mask[-1] = False, True
    return TrainingSample(
        trajectory_id=f"prompt/{number}",
        group=number // 2,
        trajectory=number,
        tokens=rng.integers(0, 256, length).astype(np.int32),
        loss_mask=mask,
        advantages=rng.normal(size=length).astype(np.float32),
        returns=rng.normal(size=length).astype(np.float32),
        sampler_logprobs=rng.normal(size=length).astype(np.float32) - 5,
        scores=Scores(values=rng.normal(size=length).astype(np.float32)),
        loss_weights={
            name: rng.random(length).astype(np.float32) for name in ("policy", "entropy", "value")
        },
    )


BATCH = [sample(number, length) for number, length in enumerate((3, 9, 5, 12, 4, 7, 6))]


def largest_of_all(inputs: LossInputs) -> dict[str, torch.Tensor]:
    return {"logprobs": inputs.logprobs}


def terms(inputs: LossInputs) -> LossTerms:
    """Each token's term depends on all tokens of the mini-batch."""
    joined = inputs.minibatch["logprobs"]
    found = {
        "policy": -inputs.advantages * inputs.logprobs * (1 + joined.std()) / len(joined),
        "entropy": inputs.entropy,
    }
    if inputs.values is not None and inputs.returns is not None:
        found["value"] = (inputs.values - inputs.returns) ** 2
    return LossTerms(
        terms=found,
        metrics={
            "spread": TokenMetric(values=inputs.logprobs.detach(), reduction="std"),
            "largest": TokenMetric(values=inputs.logprobs.detach(), reduction="max"),
            "mean": TokenMetric(values=inputs.advantages, reduction="mean"),
        },
    )


def loss(*, critic: bool = False) -> Loss:
    coefficients = {"policy": 1.0, "entropy": -0.1} | ({"value": 0.5} if critic else {})
    return Loss(fn=terms, prepare=largest_of_all, coefficients=coefficients)


def dealt(rows: Sequence[Any], one: FsdpTrainer, *, to_one_share: bool) -> list[Any]:
    """A rank's rows: unequal numbers of them, or all on the first share."""
    if to_one_share:
        return list(rows) if one.share == 0 else []
    bounds = [round(len(rows) * (k / one.shares) ** 2) for k in range(one.shares + 1)]
    return list(rows[bounds[one.share] : bounds[one.share + 1]])


def gradients(one: FsdpTrainer) -> dict[str, torch.Tensor]:
    """After the first update: AdamW's first moments are 0.1 × the gradient."""
    found = {}
    for role, model in one._trained.items():
        names = model._names()
        for optimizer in model.optimizers:
            for parameter, state in optimizer.state.items():
                found[f"{role}/{names[parameter]}"] = whole(state["exp_avg"]) / 0.1
    return found


def two_updates(
    models: dict[str, Path], config: dict[str, Any], to_one_share: bool = False
) -> dict[str, Any]:
    torch.set_num_threads(1)
    one = FsdpTrainer(models, TrainerConfig(**config), device="cpu", timeout_s=20)
    stage = loss(critic="value" in models)
    results, found = [], {}
    for _ in range(2):
        mine = dealt(BATCH, one, to_one_share=to_one_share)
        results.append(one.update(mine, stage, temperature=TEMPERATURE))
        found = found or gradients(one)
    rows = dealt([row.tokens for row in BATCH], one, to_one_share=to_one_share)
    scores = {role: one.score(role, rows, temperature=TEMPERATURE) for role in models}
    weights = {role: dict(one.weights(role)) for role in models}
    one.close()
    return {"results": results, "gradients": found, "scores": scores, "weights": weights}


def assert_like_one_process(
    number: int, models: dict[str, Path], config: dict[str, Any], *, to_one_share: bool = False
) -> None:
    expected = two_updates(models, config)
    ranks = on_ranks(number, two_updates, models, config, to_one_share, deadline_s=30)
    assert len(expected["gradients"]) > 10
    scale = sum(float(g.norm()) ** 2 for g in expected["gradients"].values()) ** 0.5
    for rank in ranks:
        for name, gradient in expected["gradients"].items():
            difference = float((rank["gradients"][name] - gradient).norm())
            assert difference <= 1e-5 * max(float(gradient.norm()), 1e-3 * scale), name
        for mine, theirs in zip(rank["results"], expected["results"], strict=True):
            assert mine == replace(
                theirs,
                metrics={
                    k: pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in theirs.metrics.items()
                },
            )
        for role, weights in expected["weights"].items():
            assert list(rank["weights"][role]) == list(weights)
            for name, weight in weights.items():
                torch.testing.assert_close(
                    rank["weights"][role][name], weight, atol=1e-4, rtol=1e-4
                )
    for role, scores in expected["scores"].items():
        joined = [row for rank in ranks for row in rank["scores"][role]]
        for mine, theirs in zip(joined, scores, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_two_ranks_with_unequal_shares_are_one_process(qwen2: Path) -> None:
    assert_like_one_process(2, {"policy": qwen2, "reference": qwen2, "value": qwen2}, CONFIG)


def test_a_rank_without_rows_computes_along(llama: Path) -> None:
    """Tied embeddings; four ranks, of which one has all rows."""
    assert_like_one_process(4, {"policy": llama}, CONFIG, to_one_share=True)
