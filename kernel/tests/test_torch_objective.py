import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.torch import LossInputs, LossTerms, MetricSums, TokenMetric, objective, pack


def sample(number: int, mask: list[int], *, advantage: float = 1.0, **scores) -> TrainingSample:
    length = len(mask)
    return TrainingSample(
        trajectory_id=f"p/{number}",
        group=number // 2,
        trajectory=number,
        tokens=np.arange(length, dtype=np.int32),
        loss_mask=np.array(mask, dtype=bool),
        advantages=np.arange(length, dtype=np.float32) * advantage,
        returns=None,
        sampler_logprobs=None,
        scores=Scores(**scores),
        loss_weights={"policy": np.full(length, 0.5, dtype=np.float32)},
    )


def packed(samples: list[TrainingSample], **kwargs):
    count = sum(int(s.loss_mask.sum()) for s in samples)
    logprobs = torch.linspace(-1.0, -2.0, count, requires_grad=True)
    return pack(samples, logprobs, torch.ones(count), needs=frozenset(), **kwargs)


def test_packing_keeps_trained_tokens_in_row_order() -> None:
    inputs, weights = packed([sample(4, [0, 1, 0, 1]), sample(5, [0, 0, 1])], seed=7)
    assert inputs.position.tolist() == [1, 3, 2]
    assert inputs.trajectory.tolist() == [4, 4, 5]
    assert inputs.group.tolist() == [2, 2, 2]
    assert inputs.advantages.tolist() == [1.0, 3.0, 2.0]
    assert weights["policy"].tolist() == [0.5, 0.5, 0.5]
    assert inputs.seed == 7


def test_a_score_that_the_loss_needs_and_a_row_lacks_is_named() -> None:
    rows = [sample(0, [0, 1], ref_logprobs=np.zeros(2, np.float32)), sample(1, [0, 1])]
    with pytest.raises(ValueError, match="needs ref_logprobs, which trajectory p/1 lacks"):
        pack(rows, torch.zeros(2), torch.zeros(2), needs=frozenset({"ref_logprobs"}))


def test_scores_that_no_loss_needs_are_not_passed_on() -> None:
    rows = [sample(0, [0, 1], old_logprobs=np.zeros(2, np.float32))]
    assert packed(rows)[0].old_logprobs is None


def policy_gradient(inputs: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": -inputs.advantages * inputs.logprobs})


def test_the_objective_by_hand() -> None:
    inputs, weights = packed([sample(0, [0, 1, 1], advantage=2.0)])
    # advantages 2, 4; log-probs -1, -2; weights ½; coefficient 3: 3 × ½ × (2·1 + 4·2) = 15
    total, _ = objective(Loss(fn=policy_gradient, coefficients={"policy": 3.0}), inputs, weights)
    assert total.item() == 15.0


def test_a_term_of_another_shape_is_refused() -> None:
    inputs, weights = packed([sample(0, [0, 1, 1])])
    loss = Loss(fn=lambda x: LossTerms(terms={"policy": x.logprobs.sum()}))
    with pytest.raises(ValueError, match=r"'policy' with shape \(\); per-token .* shape \(2,\)"):
        objective(loss, inputs, weights)


def test_a_term_without_coefficient_is_refused() -> None:
    inputs, weights = packed([sample(0, [0, 1, 1])])
    loss = Loss(fn=lambda x: LossTerms(terms={"bonus": x.logprobs}))
    with pytest.raises(ValueError, match="the term 'bonus'; its coefficients are for: policy"):
        objective(loss, inputs, weights)


def test_a_term_without_weights_is_refused() -> None:
    inputs, weights = packed([sample(0, [0, 1, 1])])
    loss = Loss(fn=lambda x: LossTerms(terms={"kl": x.logprobs}), coefficients={"kl": 1.0})
    with pytest.raises(ValueError, match=r"'kl', for which the samples carry no .* policy"):
        objective(loss, inputs, weights)


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_objectives_of_the_parts_add_up_to_that_of_the_whole(cut: int, sizes: list[int]) -> None:
    rows = [sample(i, [0] + [1] * size) for i, size in enumerate(sizes)]
    logprobs = torch.linspace(-3, -0.1, sum(sizes))
    loss = Loss(fn=policy_gradient)

    def total(start: int, stop: int) -> float:
        tokens = slice(sum(sizes[:start]), sum(sizes[:stop]))
        part = logprobs[tokens]
        inputs, weights = pack(rows[start:stop], part, torch.zeros_like(part), needs=frozenset())
        return objective(loss, inputs, weights)[0].item()

    assert total(0, cut) + total(cut, 4) == pytest.approx(total(0, 4), rel=1e-5)


def test_metrics_are_reduced_over_all_tokens_as_they_declare() -> None:
    sums = MetricSums()
    for mask, values in (([0, 1, 1], [1.0, 2.0]), ([0, 1], [6.0])):
        inputs, weights = packed([sample(0, mask)])
        tensor = torch.tensor(values)
        metrics = {
            f"{kind}_value": TokenMetric(values=tensor, reduction=kind)
            for kind in ("mean", "sum", "max", "min")
        }
        sums.add(inputs, LossTerms(terms={"policy": tensor}, metrics=metrics), weights)
    result = sums.result()
    # mean over the three tokens, not over the two micro-batches: (1 + 2 + 6) / 3
    assert result["mean_value"] == pytest.approx(3.0)
    assert (result["sum_value"], result["max_value"], result["min_value"]) == (9.0, 6.0, 1.0)
    assert result["policy_loss"] == 4.5  # weight ½ × 9
    assert result["policy_entropy"] == 1.0


def test_a_spread_is_pooled_over_all_micro_batches() -> None:
    """SkyRL's case, of four micro-batches: the population's deviation, from all 16 numbers."""
    sums = MetricSums()
    for values in (
        [0.1, 0.3, 0.5, 0.2],
        [1, 0.8, 0.6, 0.4],
        [0.2, 0.2, 0.9, 0.7],
        [0.3, 0.5, 0.1, 0.6],
    ):
        inputs, weights = packed([sample(0, [0, 1, 1, 1, 1])])
        tensor = torch.tensor(values)
        metrics = {kind: TokenMetric(values=tensor, reduction=kind) for kind in ("mean", "std")}
        sums.add(inputs, LossTerms(terms={}, metrics=metrics), weights)
    assert sums.result()["mean"] == pytest.approx(0.4625)
    assert sums.result()["std"] == pytest.approx(0.275851, abs=1e-6)


@given(st.lists(st.lists(st.floats(-5, 5, width=32), max_size=3), min_size=1, max_size=5))
def test_what_ranks_collected_together_is_what_one_would_have(parts: list[list[float]]) -> None:
    alone, joined = MetricSums(), MetricSums()
    for values in parts:
        row = sample(0, [0, *[1] * len(values)])
        inputs, weights = packed([row] if values else [])
        tensor = torch.tensor(values, dtype=torch.float32)
        metrics = {
            kind: TokenMetric(values=tensor, reduction=kind)
            for kind in ("mean", "std", "sum", "min", "max")
        }
        of_rank = MetricSums()
        for sums in (alone, of_rank):
            sums.add(inputs, LossTerms(terms={}, metrics=metrics), weights)
        joined.include(pickle.loads(pickle.dumps(of_rank)))
    assert joined.result() == pytest.approx(alone.result())


def test_metrics_without_tokens_are_left_out() -> None:
    sums = MetricSums()
    inputs, weights = packed([])
    empty = torch.zeros(0)
    sums.add(inputs, LossTerms(terms={}, metrics={"x": TokenMetric(values=empty)}), weights)
    assert sums.result() == {}


def test_differences_to_the_sampler_are_pooled_over_micro_batches() -> None:
    # current - sampler: 0.5, 1 | 0, 0.5, 1.5, as SkyRL's own case: mean 0.7, mean square 0.75
    parts = [([-1.0, -2.0], [-1.5, -1.0]), ([-0.5, -1.5, -2.5], [-0.5, -2.0, -1.0])]
    sums = MetricSums()
    for current, sampler in parts:
        row = replace(
            sample(0, [0] + [1] * len(current)),
            sampler_logprobs=np.array([0, *sampler], dtype=np.float32),
        )
        logprobs = torch.tensor(current, requires_grad=True)
        inputs, weights = pack([row], logprobs, torch.zeros_like(logprobs), needs=frozenset())
        sums.add(inputs, LossTerms(terms={}), weights)
    name = "minibatch_rollout_logprobs_abs_diff"
    found = {key: value for key, value in sums.result().items() if key.startswith(name)}
    assert found == {
        f"{name}_mean": pytest.approx(0.7),
        f"{name}_std": pytest.approx((0.75 - 0.49) ** 0.5),
        f"{name}_min": 0.0,
        f"{name}_max": pytest.approx(1.5),
    }
