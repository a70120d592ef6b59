import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.torch import KL_ESTIMATORS, kl_estimate, ratio

LOGPROBS = torch.tensor([0.2, 0.3, 0.5])
REFERENCE = torch.tensor([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", 0.1),  # the difference
        ("abs", 0.1),
        ("k2", 0.005),  # 0.1² / 2
        ("k3", 0.00483742),  # e^-0.1 + 0.1 - 1
    ],
)
def test_estimators_of_a_difference_of_a_tenth(kind: str, expected: float) -> None:
    estimate = kl_estimate(LOGPROBS, REFERENCE, kind)
    torch.testing.assert_close(estimate, torch.full((3,), expected), atol=1e-7, rtol=1e-5)


def test_k3_is_bounded_where_the_policy_left_the_reference() -> None:
    # e^15 - 15 - 1 is 3.3 million
    assert kl_estimate(torch.tensor([-15.0]), torch.tensor([0.0]), "k3").item() == 10.0


def test_an_unknown_estimator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no KL estimator named 'k9'; there are k1, k2, k3, abs"):
        kl_estimate(LOGPROBS, REFERENCE, "k9")


@pytest.mark.parametrize("kind", sorted(KL_ESTIMATORS))
def test_equal_models_have_no_divergence(kind: str) -> None:
    assert kl_estimate(LOGPROBS, LOGPROBS, kind).abs().max() == 0


@given(st.lists(st.floats(-5, 0), min_size=1), st.floats(-3, 3))
def test_k2_k3_and_abs_are_never_negative(logprobs: list[float], shift: float) -> None:
    policy = torch.tensor(logprobs)
    for kind in ("k2", "k3", "abs"):
        assert (kl_estimate(policy, policy + shift, kind) >= -1e-6).all()


def test_k1_and_k3_estimate_the_divergence_of_two_distributions() -> None:
    # KL(p ‖ q) = 0.7 ln(0.7/0.4) + 0.3 ln(0.3/0.6), and both estimators are unbiased under p.
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    exact = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    for kind in ("k1", "k3"):
        assert (p * kl_estimate(p.log(), q.log(), kind)).sum().item() == pytest.approx(exact, 1e-5)


def test_ratio_of_halved_and_of_tenfold_probability() -> None:
    logprobs = torch.tensor([-1.69314718, -1.0, -0.69741491])
    old = torch.tensor([-1.0, -1.0, -3.0])
    torch.testing.assert_close(
        ratio(logprobs, old), torch.tensor([0.5, 1.0, 10.0]), atol=1e-4, rtol=0
    )


def test_ratio_stays_finite_and_its_gradient_too() -> None:
    logprobs = torch.tensor([0.0, 500.0, -500.0], requires_grad=True)
    value = ratio(logprobs, torch.zeros(3))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [1.0, 0.0, 0.0]  # clamped: no gradient beyond the bound
