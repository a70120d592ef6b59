"""The entropy that every run reports, and the bonus for it."""

import pytest
import torch
from torch import Tensor

from skyrl_kernel.defaults.entropy_loss import with_entropy
from skyrl_kernel.defaults.kl_loss import with_kl
from skyrl_kernel.protocols import Loss
from skyrl_kernel.torch import (
    LossInputs,
    LossTerms,
    MetricSums,
    entropy,
    objective,
    ratio,
    selected_logprobs,
)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.947537),
        # p = e/(e+3) = .4754 and thrice .1749: -.4754 ln .4754 - 3 × .1749 ln .1749
        ([1.0, 0.0, 0.0, 0.0], 1.268301),
        ([5.0, 5.0, 5.0, 5.0], 1.386294),  # ln 4
        ([1e4, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_entropies_by_hand(logits: list[float], expected: float) -> None:
    assert entropy(torch.tensor([logits])).item() == pytest.approx(expected, abs=1e-5)


def inputs(logprobs: Tensor, entropies: Tensor, **scores: Tensor) -> LossInputs:
    count = len(logprobs)
    return LossInputs(
        logprobs=logprobs,
        entropy=entropies,
        advantages=torch.linspace(-1, 1, count, dtype=logprobs.dtype),
        trajectory=torch.zeros(count, dtype=torch.int64),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
        **scores,
    )


def policy_gradient(batch: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": -batch.advantages * batch.logprobs})


def test_the_bonus_is_subtracted_with_its_coefficient() -> None:
    loss = with_entropy(Loss(fn=policy_gradient), 0.01)
    batch = inputs(torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 1.5]))
    weights = {"policy": torch.tensor([0.5, 0.5]), "entropy": torch.tensor([0.25, 0.75])}
    total, out = objective(loss, batch, weights)
    # policy: ½ (-1 × 1) + ½ (1 × 2) = ½; entropy: ¼ × ½ + ¾ × 1.5 = 1.25
    assert total.item() == pytest.approx(0.5 - 0.01 * 1.25)
    sums = MetricSums()
    sums.add(batch, out, weights)
    assert sums.result()["entropy_loss"] == pytest.approx(1.25)
    assert sums.result()["policy_entropy"] == pytest.approx(1.0)  # the mean over tokens


def test_a_bonus_raises_the_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    before = entropy(logits).item()
    loss = with_entropy(Loss(fn=policy_gradient, coefficients={"policy": 0.0}), 1.0)
    for _ in range(20):
        batch = inputs(selected_logprobs(logits, torch.tensor([0])), entropy(logits))
        total, _ = objective(loss, batch, {"policy": torch.ones(1), "entropy": torch.ones(1)})
        (gradient,) = torch.autograd.grad(total, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert before < entropy(logits).item() == pytest.approx(torch.tensor(3.0).log().item(), abs=0.1)


def clipped(batch: LossInputs) -> LossTerms:
    """PPO's loss, written down once more."""
    assert batch.old_logprobs is not None
    r = ratio(batch.logprobs, batch.old_logprobs)
    a = batch.advantages
    return LossTerms(terms={"policy": -torch.minimum(r * a, r.clamp(0.8, 1.2) * a)})


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_whole_objective_has_the_gradient_that_its_values_say(
    estimator: str, temperature: float
) -> None:
    """From logits, in double precision: clipped loss, KL and entropy, by finite differences."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5, generator=rng, dtype=torch.float64)
    tokens = torch.randint(5, (9,), generator=rng)
    weights = {
        name: torch.rand(9, generator=rng, dtype=torch.float64)
        for name in ("policy", "kl", "entropy")
    }
    now = selected_logprobs(logits, tokens, temperature)
    shift = torch.linspace(-0.5, 0.45, 9, dtype=torch.float64)  # no ratio at an edge of the clip
    loss = with_entropy(with_kl(Loss(fn=clipped), estimator, 0.3), 0.2)

    def total(logits: Tensor) -> Tensor:
        batch = inputs(
            selected_logprobs(logits, tokens, temperature),
            entropy(logits, temperature),
            old_logprobs=now + shift,
            ref_logprobs=now - 0.3,
        )
        return objective(loss, batch, weights)[0]

    assert torch.autograd.gradcheck(total, (logits.requires_grad_(),), eps=1e-6, atol=1e-8)
