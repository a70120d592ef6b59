"""The clipped policy loss against numbers worked out by hand, and against calculus."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skyrl_grpo import clipped_loss
from skyrl_grpo.clip import loss
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.torch import LossInputs, MetricSums, objective

# The first token became half as likely, the second stayed, the third became ten times as likely.
OLD = torch.tensor([-1.0, -1.0, -3.0])
NOW = torch.tensor([-1.69315, -1.0, -0.69741])
ADVANTAGES = torch.tensor([1.0, -1.0, -4.0])

logprobs = st.floats(-20, 0, allow_subnormal=False)
advantages = st.floats(-5, 5, allow_subnormal=False)
tokens = st.lists(st.tuples(logprobs, logprobs, advantages), min_size=1, max_size=6)


def regular(**config: float) -> Loss:
    stage = loss("regular", {AlgorithmConfig: AlgorithmConfig(**config)})
    assert stage is not None
    return stage


def inputs(now: Tensor, old: Tensor, advantages: Tensor) -> LossInputs:
    count = len(now)
    return LossInputs(
        logprobs=now,
        entropy=torch.zeros(count),
        advantages=advantages,
        trajectory=torch.zeros(count, dtype=torch.int64),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
        old_logprobs=old,
    )


def gradient(now: Tensor, old: Tensor, advantages: Tensor, **config: float) -> Tensor:
    """Of the sum over tokens, by log-prob."""
    now = now.clone().requires_grad_()
    regular(**config)(inputs(now, old, advantages)).terms["policy"].sum().backward()
    assert now.grad is not None
    return now.grad


# --- worked numbers -----------------------------------------------------------------


def test_the_loss_of_three_tokens_by_hand() -> None:
    # ratios ½, 1, 10, clipped to 0.8, 1, 1.2, against advantages 1, -1, -4:
    #   -min(½, 0.8) = -0.5     -min(-1, -1) = 1     -min(-40, -4.8) = 40
    out = regular()(inputs(NOW, OLD, ADVANTAGES))
    torch.testing.assert_close(
        out.terms["policy"], torch.tensor([-0.5, 1.0, 40.0]), atol=1e-3, rtol=0
    )
    assert out.terms["policy"].sum().item() == pytest.approx(40.5002, abs=1e-3)
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [0, 0, 0]


def test_a_ratio_of_ten_is_clipped_where_the_token_did_well() -> None:
    # A = 4: -min(10 × 4, 1.2 × 4) = -4.8, and the gradient is gone
    out = regular()(inputs(NOW, OLD, -ADVANTAGES))
    assert out.terms["policy"][2].item() == pytest.approx(-4.8)
    # A = -1 and ratio ½: -min(-½, -0.8) = 0.8 is clipped too
    assert out.terms["policy"][0].item() == pytest.approx(0.8)
    assert out.metrics["loss_metrics/clip_ratio"].values.tolist() == [1, 0, 1]
    assert gradient(NOW, OLD, -ADVANTAGES).tolist() == [0, -1, 0]  # -r·A for the middle token


def test_the_two_sides_of_the_clip_are_set_apart() -> None:
    # ratio 10: up to 1 + 4 with A = 1; ratio ½: down to 1 - 0.4 with A = -1
    out = regular(eps_clip_low=0.4, eps_clip_high=4.0)(inputs(NOW, OLD, torch.tensor([-1, 1, 1.0])))
    torch.testing.assert_close(out.terms["policy"], torch.tensor([0.6, -1.0, -5.0]))


def test_the_metrics_of_the_mini_batch() -> None:
    sums = MetricSums()
    batch = inputs(NOW, OLD, -ADVANTAGES)
    weights = {"policy": torch.full((3,), 1 / 3)}
    sums.add(batch, objective(regular(), batch, weights)[1], weights)
    got = sums.result()
    assert got["loss_metrics/clip_ratio"] == pytest.approx(2 / 3)
    assert got["loss_metrics/ratio_mean"] == pytest.approx((0.5 + 1 + 10) / 3, rel=1e-4)
    assert got["loss_metrics/ratio_max"] == pytest.approx(10, rel=1e-4)
    # the mean of 0.8 (clipped), -1 and -4.8 (clipped)
    assert got["policy_loss"] == pytest.approx((0.8 - 1 - 4.8) / 3, rel=1e-4)


def test_it_asks_for_old_log_probs_and_nothing_else() -> None:
    assert regular().needs == {"old_logprobs"}
    assert not regular().needs_sampler_logprobs
    assert loss("dual_clip", {AlgorithmConfig: AlgorithmConfig()}) is None


# --- what must hold for any numbers ---------------------------------------------------


@given(st.lists(st.tuples(logprobs, advantages), min_size=1, max_size=6))
def test_before_the_policy_moves_the_gradient_is_the_plain_policy_gradient(
    rows: list[tuple[float, float]],
) -> None:
    now, credit = torch.tensor(rows).T
    # d(-exp(lp - old) A)/d lp at lp = old is -A, whatever the clip
    torch.testing.assert_close(gradient(now, now, credit), -credit)


@given(tokens)
def test_a_token_has_a_gradient_exactly_where_it_is_not_clipped(
    rows: list[tuple[float, float, float]],
) -> None:
    now, old, credit = torch.tensor(rows).T
    out = regular()(inputs(now, old, credit))
    clipped = out.metrics["loss_metrics/clip_ratio"].values.bool()
    ratios = (now - old).exp()
    # up to the bound of the log-ratio, which |now - old| ≤ 20 does not pass
    expected = torch.where(clipped, 0.0, -ratios * credit)
    torch.testing.assert_close(gradient(now, old, credit), expected, rtol=1e-4, atol=1e-6)


@given(tokens)
def test_the_clip_never_makes_the_loss_smaller(rows: list[tuple[float, float, float]]) -> None:
    now, old, credit = torch.tensor(rows).T
    free = -(now - old).exp() * credit
    got = regular()(inputs(now, old, credit)).terms["policy"]
    assert (got >= free - 1e-5 * free.abs()).all()


@given(tokens)
def test_no_advantage_means_no_gradient(rows: list[tuple[float, float, float]]) -> None:
    now, old, _ = torch.tensor(rows).T
    assert gradient(now, old, torch.zeros_like(now)).abs().max() == 0


@pytest.mark.parametrize("far", [1e4, -1e4])
@pytest.mark.parametrize("credit", [1.0, -1.0])
def test_a_policy_far_from_the_old_one_gives_finite_numbers(far: float, credit: float) -> None:
    now, old = torch.tensor([min(far, 0.0)]), torch.tensor([min(-far, 0.0)])
    out = regular()(inputs(now, old, torch.tensor([credit])))
    assert torch.isfinite(out.terms["policy"]).all()
    assert torch.isfinite(gradient(now, old, torch.tensor([credit]))).all()


def test_the_gradient_is_the_slope_of_the_loss_in_double_precision() -> None:
    # away from the corners, where the loss has two slopes
    ratios = torch.tensor([0.5, 0.79, 0.9, 1.1, 1.21, 3.0], dtype=torch.float64).repeat(2)
    credit = torch.tensor([1.5, -0.7], dtype=torch.float64).repeat_interleave(6)
    old = torch.full((12,), -2.0, dtype=torch.float64)
    now = (ratios.log() + old).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: regular()(inputs(x, old, credit)).terms["policy"], (now,), eps=1e-6, atol=1e-8
    )


def test_at_the_clip_s_edge_nothing_is_clipped_yet() -> None:
    ratios = torch.tensor([0.75, 1.25])
    got, clipped = clipped_loss(ratios, torch.tensor([-1.0, 1.0]), 0.25, 0.25)
    assert got.tolist() == [0.75, -1.25]
    assert clipped.tolist() == [False, False]
