"""One update: the same gradient however it is split, and the one a plain loop computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from skyrl_fsdp.microbatch import split
from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config.roles import OptimizerConfig, PolicyConfig
from skyrl_kernel.config.trainer import TrainerConfig
from skyrl_kernel.errors import NonFiniteError
from skyrl_kernel.protocols import Loss
from skyrl_kernel.records import Scores, TrainingSample
from skyrl_kernel.torch import LossInputs, LossTerms, TokenMetric
from skyrl_transformers.loading import no_progress_bars

LEARNING_RATE = 1e-3


def trainer(model: Path, **config: object) -> FsdpTrainer:
    optimizer = {"lr": LEARNING_RATE, "max_grad_norm": 1e9, **config.pop("optimizer", {})}
    return FsdpTrainer(
        {"policy": model},
        TrainerConfig(
            **{"bf16": False, "gradient_checkpointing": False, **config},
            policy=PolicyConfig(optimizer_config=OptimizerConfig(**optimizer)),
        ),
        device="cpu",
    )


def sample(
    number: int,
    mask: Sequence[bool],
    *,
    group: int | None = None,
    trajectory: int | None = None,
    terms: Sequence[str] = ("policy",),
) -> TrainingSample:
    rng = np.random.default_rng([number, len(mask)])
    length = len(mask)
    return TrainingSample(
        trajectory_id=f"prompt/{number}",
        group=number // 2 if group is None else group,
        trajectory=number if trajectory is None else trajectory,
        tokens=rng.integers(0, 256, length).astype(np.int32),
        loss_mask=np.array(mask, dtype=bool),
        advantages=rng.normal(size=length).astype(np.float32),
        returns=None,
        sampler_logprobs=None,
        scores=Scores(old_logprobs=rng.normal(size=length).astype(np.float32) - 5),
        loss_weights={name: rng.random(length).astype(np.float32) for name in terms},
    )


def policy_gradient(inputs: LossInputs) -> LossTerms:
    return LossTerms(
        terms={"policy": -inputs.advantages * inputs.logprobs},
        metrics={"largest": TokenMetric(values=inputs.logprobs.detach(), reduction="max")},
    )


def with_entropy(inputs: LossInputs) -> LossTerms:
    terms = {"policy": -inputs.advantages * inputs.logprobs, "entropy": inputs.entropy}
    return LossTerms(terms=terms)


ENTROPY_LOSS = Loss(fn=with_entropy, coefficients={"policy": 1.0, "entropy": -0.1})

# Rows of 2 to 12 tokens whose first token is never trained; some train on nothing.
masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=11), min_size=1, max_size=6).map(
    lambda rows: [[False, *row] for row in rows]
)


def update_of(model: Path, batch: Sequence[TrainingSample], loss: Loss, **config: object):
    """The update's result, and AdamW's first moments: 0.1 × the gradient, by name."""
    one = trainer(model, **config)
    result = one.update(batch, loss, temperature=0.7)
    names = {id(p): name for name, p in one.module().named_parameters()}
    gradients = {
        names[id(p)]: state["exp_avg"] / 0.1
        for optimizer in one._optimizers
        for p, state in optimizer.state.items()
    }
    return result, gradients


def naive_gradients(model: Path, batch: Sequence[TrainingSample]) -> Mapping[str, torch.Tensor]:
    """The same objective row by row in plain Hugging Face and torch code."""
    with no_progress_bars():
        module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for row in batch:
        ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
        logits = module(input_ids=ids).logits[0, :-1] / 0.7
        distribution = torch.distributions.Categorical(logits=logits)
        terms = (
            -torch.from_numpy(row.advantages[1:]) * distribution.log_prob(ids[0, 1:]),
            -0.1 * distribution.entropy(),
        )
        weights = [torch.from_numpy(row.loss_weights[name][1:]) for name in ("policy", "entropy")]
        mask = torch.from_numpy(row.loss_mask[1:])
        (weights[0] * terms[0] + weights[1] * terms[1])[mask].sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(masks)
def test_gradients_are_those_of_a_plain_loop_whatever_the_micro_batch(
    llama: Path, rows: list[list[bool]]
) -> None:
    batch = [sample(i, row, terms=("policy", "entropy")) for i, row in enumerate(rows)]
    expected = naive_gradients(llama, batch) if any(map(any, rows)) else {}
    scale = max((float(g.abs().max()) for g in expected.values()), default=1.0)
    bounds: list[dict[str, Any]] = [
        *({"micro_train_batch_size_per_gpu": size} for size in (1, 2, 8)),
        *({"max_tokens_per_microbatch": tokens} for tokens in (1, 16, 64)),
    ]
    for bound in bounds:
        _, got = update_of(llama, batch, ENTROPY_LOSS, **bound)
        assert got.keys() == {name for name, g in expected.items()}
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-5 * scale, rtol=1e-4)


def test_qwen2_with_untied_head_and_gradient_checkpointing_computes_the_same(qwen2: Path) -> None:
    batch = [sample(i, [False] + [True] * (i + 2), terms=("policy", "entropy")) for i in range(4)]
    expected = naive_gradients(qwen2, batch)
    _, got = update_of(
        qwen2, batch, ENTROPY_LOSS, micro_train_batch_size_per_gpu=2, gradient_checkpointing=True
    )
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=2e-6 * scale, rtol=1e-4)


def test_the_slope_along_the_gradient_is_its_norm(llama: Path) -> None:
    """Finite differences, along one direction: transformers' norms compute in float32."""
    batch = [sample(0, [False, True, False, True]), sample(1, [False, False, True])]
    one = trainer(llama)
    module = one.module()

    @torch.no_grad()
    def objective() -> float:
        total = 0.0
        for row in batch:
            ids = torch.from_numpy(row.tokens.astype(np.int64))[None]
            logprobs = module(input_ids=ids).logits[0].double().log_softmax(-1)
            for t in np.flatnonzero(row.loss_mask):
                weight = float(row.loss_weights["policy"][t]) * -float(row.advantages[t])
                total += weight * float(logprobs[t - 1, row.tokens[t]])
        return total

    value, _ = one._backward([batch], ["policy"], Loss(fn=policy_gradient), 1.0)
    assert value == pytest.approx(objective(), rel=1e-5)
    gradients = {p: p.grad.clone() for p in module.parameters() if p.grad is not None}
    norm = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)

    @torch.no_grad()
    def shifted(distance: float) -> float:
        for p, g in gradients.items():
            p += distance * g / norm
        result = objective()
        for p, g in gradients.items():
            p -= distance * g / norm
        return result

    slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
    assert slope == pytest.approx(norm, rel=1e-3)


def test_metrics_do_not_depend_on_the_micro_batch(llama: Path) -> None:
    batch = [sample(i, [False] * 2 + [True] * (1 + 3 * i)) for i in range(4)]
    results = [
        update_of(llama, batch, Loss(fn=policy_gradient), micro_train_batch_size_per_gpu=size)[0]
        for size in (1, 3, 8)
    ]
    for result in results:
        assert result.metrics == pytest.approx(results[0].metrics, rel=1e-5)
        assert result.weights_changed
    assert set(results[0].metrics) == {
        *("final_loss", "policy_loss", "policy_entropy", "grad_norm", "policy_lr"),
        *("trained_tokens", "largest"),
    }
    assert results[0].metrics["trained_tokens"] == 1 + 4 + 7 + 10
    assert results[0].metrics["policy_lr"] == LEARNING_RATE


def test_masked_tokens_and_what_follows_the_last_trained_one_have_no_influence(
    llama: Path,
) -> None:
    row = sample(0, [False, True, True, False, False])
    noisy = TrainingSample(
        **{
            name: getattr(row, name)
            for name in row.__slots__
            if name not in ("tokens", "advantages")
        },
        tokens=np.concatenate([row.tokens[:3], row.tokens[3:][::-1]]),
        advantages=np.where(row.loss_mask, row.advantages, np.float32(np.nan)),
    )
    _, one = update_of(llama, [row], Loss(fn=policy_gradient))
    _, other = update_of(llama, [noisy], Loss(fn=policy_gradient))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_atoms_are_never_split() -> None:
    # trajectory 1 has two segments, and group 0 three rows
    rows = [
        sample(0, [False, True], group=0),
        sample(1, [False, True], group=0),
        sample(2, [False] + [True] * 9, group=0, trajectory=1),
        sample(3, [False, True], group=1),
        sample(4, [False, True, True], group=1),
    ]
    ids = [
        [row.trajectory_id[-1] for row in batch] for batch in split(rows, "trajectory", max_rows=2)
    ]
    assert ids == [["0", "3"], ["4"], ["1", "2"]]
    ids = [[row.trajectory_id[-1] for row in batch] for batch in split(rows, "group", max_rows=2)]
    assert ids == [["3", "4"], ["0", "1", "2"]]


def test_columns_of_the_whole_mini_batch_are_there_before_the_loss_sees_a_token(
    llama: Path,
) -> None:
    batch = [sample(i, [False] + [True] * (i + 1)) for i in range(3)]
    seen = []

    def loss(inputs: LossInputs) -> LossTerms:
        assert inputs.logprobs.requires_grad
        seen.append(sorted(inputs.minibatch["advantages"].tolist()))
        return LossTerms(terms={"policy": inputs.logprobs})

    def prepare(inputs: LossInputs) -> dict[str, torch.Tensor]:
        assert not inputs.logprobs.requires_grad
        return {"advantages": inputs.advantages}

    result, _ = update_of(llama, batch, Loss(fn=loss, prepare=prepare))
    everything = sorted(float(a) for row in batch for a in row.advantages[row.loss_mask])
    assert seen == [everything] * 3
    assert result.weights_changed


def test_each_update_has_its_own_key_for_random_choices(llama: Path) -> None:
    seeds = []

    def loss(inputs: LossInputs) -> LossTerms:
        seeds.append(inputs.seed)
        return LossTerms(terms={"policy": inputs.logprobs})

    batch = [sample(i, [False, True]) for i in range(2)]
    one = trainer(llama)
    for _ in range(2):
        one.update(batch, Loss(fn=loss), temperature=1.0)
    first, same, second, _ = seeds
    assert first == same  # both micro-batches of an update
    assert first != second


def test_a_batch_without_a_trained_token_changes_nothing(llama: Path) -> None:
    one = trainer(llama)
    before = {name: tensor.clone() for name, tensor in one.weights()}
    result = one.update([sample(0, [False, False])], Loss(fn=policy_gradient), temperature=1.0)
    assert not result.weights_changed
    assert result.metrics["trained_tokens"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in one.weights())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_rate_of_zero_is_reported_as_unchanged_weights(llama: Path, name: str) -> None:
    one = trainer(llama, optimizer={"name": name, "lr": 0.0, "muon_lr": 0.0})
    result = one.update([sample(0, [False, True])], Loss(fn=policy_gradient), temperature=1.0)
    assert not result.weights_changed


def test_muon_moves_exactly_the_hidden_matrices(llama: Path) -> None:
    one = trainer(llama, optimizer={"name": "muon", "lr": 0.0, "muon_lr": 0.01})
    result = one.update([sample(0, [False, True])], Loss(fn=policy_gradient), temperature=1.0)
    assert result.weights_changed
    fresh = trainer(llama)
    changed = {
        name
        for (name, tensor), (_, old) in zip(one.weights(), fresh.weights(), strict=True)
        if not torch.equal(tensor, old)
    }
    assert changed == {
        f"model.layers.{layer}.{matrix}.weight"
        for layer in range(2)
        for matrix in (
            *(f"self_attn.{p}_proj" for p in "qkvo"),
            *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
        )
    }


def test_the_gradient_is_clipped_and_its_norm_reported_before(llama: Path) -> None:
    batch = [sample(0, [False, True, True])]
    free, gradients = update_of(llama, batch, Loss(fn=policy_gradient))
    norm = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)
    assert free.metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    clipped, gradients = update_of(
        llama, batch, Loss(fn=policy_gradient), optimizer={"max_grad_norm": norm / 4}
    )
    assert clipped.metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    got = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)
    assert got == pytest.approx(norm / 4, rel=1e-4)


def test_bfloat16_compute_stays_near_and_keeps_float32_weights(llama: Path) -> None:
    batch = [sample(0, [False, True, True])]
    exact, _ = update_of(llama, batch, Loss(fn=policy_gradient))
    rounded, gradients = update_of(llama, batch, Loss(fn=policy_gradient), bf16=True)
    assert rounded.metrics["final_loss"] != exact.metrics["final_loss"]
    assert rounded.metrics["final_loss"] == pytest.approx(exact.metrics["final_loss"], rel=0.05)
    assert all(g.dtype == torch.float32 for g in gradients.values())


def test_a_nan_in_the_loss_names_the_trajectory_and_leaves_the_weights(llama: Path) -> None:
    one = trainer(llama)
    before = {name: tensor.clone() for name, tensor in one.weights()}
    batch = [sample(i, [False, True, True]) for i in range(3)]
    batch[1].advantages[2] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"loss terms 'policy' of 1 tokens .* trajectories prompt/1; the weig"
    ):
        one.update(batch, Loss(fn=policy_gradient), temperature=1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.weights())
    assert all(p.grad is None for p in one.module().parameters())
    batch[1].advantages[2] = 0.0
    assert one.update(batch, Loss(fn=policy_gradient), temperature=1.0).weights_changed


def test_nan_weights_are_found_in_the_log_probs(llama: Path) -> None:
    one = trainer(llama)
    with torch.no_grad():
        one.module().model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="log-probs of 2 tokens are NaN or infinite"):
        one.update([sample(0, [False, True, True])], Loss(fn=policy_gradient), temperature=1.0)


def test_an_overflowing_gradient_is_refused(llama: Path) -> None:
    one = trainer(llama)
    batch = [sample(0, [False, True, True])]
    batch[0].loss_weights["policy"][:] = 3e38  # finite terms, infinite gradient
    with pytest.raises(NonFiniteError, match=r"the gradient's norm is (inf|nan) .* prompt/0"):
        one.update(batch, Loss(fn=policy_gradient), temperature=1.0)


def test_a_trained_first_token_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="prompt/0 has loss_mask True at its first token"):
        trainer(llama).update([sample(0, [True])], Loss(fn=policy_gradient), temperature=1.0)
