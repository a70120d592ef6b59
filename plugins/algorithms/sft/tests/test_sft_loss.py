"""Cross-entropy, and the advantage that goes with it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from skyrl_kernel.records import Prompt, Scored, Scores, Segment, StopReason, Trajectory
from skyrl_kernel.torch import LossInputs
from skyrl_sft.cross_entropy import cross_entropy, loss
from skyrl_sft.uniform import advantage, uniform


def inputs(logprobs: list[float]) -> LossInputs:
    count = len(logprobs)
    return LossInputs(
        logprobs=torch.tensor(logprobs),
        entropy=torch.zeros(count),
        advantages=torch.full((count,), math.nan),  # not read
        trajectory=torch.zeros(count, dtype=torch.int64),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
    )


def test_the_loss_of_a_token_is_its_negative_log_prob() -> None:
    out = cross_entropy(inputs([-1.69315, -1.0, -0.69741]))
    assert out.terms["policy"].sum().item() == pytest.approx(3.39056)


def test_the_loss_needs_no_scores_and_no_samples() -> None:
    stage = loss("cross_entropy")
    assert stage is not None
    assert stage.needs == frozenset()
    assert not stage.needs_sampler_logprobs
    assert loss("regular") is None


def scored(*masks: list[bool]) -> Scored:
    segments = tuple(
        Segment(
            tokens=np.arange(len(mask), dtype=np.int32),
            num_prompt_tokens=0,
            loss_mask=np.array(mask),
        )
        for mask in masks
    )
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid="0:0", messages=[], env_class="none"),
            sample=0,
            segments=segments,
            turns=(),
            stop_reason=StopReason.STOP,
        ),
        scores=(Scores(),) * len(masks),
    )


def test_every_trained_token_counts_one() -> None:
    stage = advantage("uniform")
    assert stage is not None
    ((two_rows,), ()) = stage([[scored([False, True], [True, True, False])], []])
    assert [entry.advantages.tolist() for entry in two_rows] == [[0, 1], [1, 1, 0]]
    assert all(entry.advantages.dtype == np.float32 for entry in two_rows)
    assert [entry.loss_mask.tolist() for entry in two_rows] == [[False, True], [True, True, False]]
    assert stage.fn is uniform
    assert advantage("grpo") is None


def test_the_gradient_is_that_of_finite_differences() -> None:
    logprobs = torch.tensor([-1.7, -1.0, -1e4], dtype=torch.float64, requires_grad=True)

    def terms(logprobs: torch.Tensor) -> torch.Tensor:
        return cross_entropy(replace(inputs([0.0] * 3), logprobs=logprobs)).terms["policy"]

    assert torch.autograd.gradcheck(terms, (logprobs,))
