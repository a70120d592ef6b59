"""The loss of a pair, by hand, by finite differences, and at its extremes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_dpo.config import DpoConfig
from skyrl_dpo.loss import dpo, make_loss, pair_loss
from skyrl_kernel.torch import LossInputs, objective
from skyrl_reductions import prompt_mean

PAPER = DpoConfig()


def inputs(
    log_ratios: list[float], side: list[int], group: list[int], *, ref: float = -1.0
) -> LossInputs:
    count = len(side)
    trajectory = [2 * number + (one < 0) for number, one in zip(group, side, strict=True)]
    return LossInputs(
        logprobs=(ref + torch.tensor(log_ratios, dtype=torch.float64)).requires_grad_(),
        entropy=torch.zeros(count),
        advantages=torch.tensor(side, dtype=torch.float32),
        trajectory=torch.tensor(trajectory),
        group=torch.tensor(group),
        position=torch.arange(count),
        ref_logprobs=torch.full((count,), ref, dtype=torch.float64),
    )


TWO_PAIRS = inputs([1.5, 0.5, -1.0, -0.25, 0.0, 0.25], [1, 1, -1, 1, -1, -1], [0, 0, 0, 1, 1, 1])
"""Margins (1.5 + 0.5) − (−1) = 3 and −0.25 − 0.25 = −0.5."""


def test_the_loss_of_a_pair_stands_at_each_of_its_tokens() -> None:
    out = dpo(TWO_PAIRS, config=PAPER)
    first = -math.log(1 / (1 + math.exp(-0.3)))  # −ln σ(β · 3) = 0.554355
    second = -math.log(1 / (1 + math.exp(0.05)))  # −ln σ(−β · 0.5) = 0.718460
    assert (first, second) == pytest.approx((0.554355, 0.718460), abs=1e-6)
    assert out.terms["policy"].tolist() == pytest.approx([first] * 3 + [second] * 3)


def test_with_prompt_mean_the_objective_is_the_mean_over_pairs() -> None:
    masks = [np.array([True] * count) for count in (2, 1, 1, 2)]  # rows of the trajectories
    weights = np.concatenate(prompt_mean(masks, [0, 1, 2, 3], [0, 0, 1, 1]))
    total, _ = objective(
        make_loss(PAPER), TWO_PAIRS, {"policy": torch.from_numpy(weights).double()}
    )
    assert total.item() == pytest.approx((0.554355 + 0.718460) / 2, abs=1e-6)


def test_the_gradient_is_the_paper_s() -> None:
    """§4: β σ(r̂(y_l) − r̂(y_w)), up at each token of the preferred answer and down at the other's."""
    case = inputs([1.5, 0.5, -1.0], [1, 1, -1], [0, 0, 0])
    dpo(case, config=PAPER).terms["policy"].mean().backward()  # type: ignore[no-untyped-call]
    assert case.logprobs.grad is not None
    pull = 0.1 / (1 + math.exp(0.3))
    assert case.logprobs.grad.tolist() == pytest.approx([-pull, -pull, pull])


def test_the_metrics_are_means_over_pairs() -> None:
    metrics = dpo(TWO_PAIRS, config=PAPER).metrics
    found = {name: metric.values.tolist() for name, metric in metrics.items()}
    assert {metric.reduction for metric in metrics.values()} == {"mean"}
    assert found == {
        "loss_metrics/accuracy": [1.0, 0.0],
        "loss_metrics/reward_margin": pytest.approx([0.3, -0.05]),
        "loss_metrics/chosen_reward": pytest.approx([0.2, -0.025]),
        "loss_metrics/rejected_reward": pytest.approx([-0.1, 0.025]),
        "loss_metrics/chosen_logprob": pytest.approx([0.0, -1.25]),  # 1.5 + 0.5 − 2 · 1
        "loss_metrics/rejected_logprob": pytest.approx([-2.0, -1.75]),
    }
    assert not any(metric.values.requires_grad for metric in metrics.values())


def test_where_the_policy_is_the_reference_the_loss_is_ln_2() -> None:
    out = dpo(inputs([0.0, 0.0], [1, -1], [0, 0]), config=PAPER)
    assert out.terms["policy"].tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        # (1−ε)·loss + ε·loss of the pair turned around: margins 3 and −3 times β = 0.1
        ({"label_smoothing": 0.1}, [0.9 * 0.554355 + 0.1 * 0.854355]),
        ({"beta": 1.0}, [0.048587]),  # −ln σ(3)
        ({"loss_type": "ipo"}, [4.0]),  # (3 − 1 / 0.2)²
        ({"loss_type": "hinge"}, [0.7]),  # 1 − 0.3
        ({"loss_type": "hinge", "beta": 0.5}, [0.0]),
    ],
)
def test_variants_by_hand(config: dict[str, object], losses: list[float]) -> None:
    found = pair_loss(torch.tensor([3.0]), DpoConfig.model_validate(config))
    assert found.tolist() == pytest.approx(losses, abs=1e-6)


def test_ipo_of_means_does_not_depend_on_lengths() -> None:
    # means (1.5 + 0.5) / 2 and −1: margin 2, less 1 / 0.4; −0.25 and (0 + 0.25) / 2: margin −0.375
    config = DpoConfig(loss_type="ipo_mean", beta=0.2)
    terms = dpo(TWO_PAIRS, config=config).terms["policy"].tolist()
    assert terms == pytest.approx([0.25] * 3 + [2.875**2] * 3)
    thrice = inputs([2.0] * 3 + [0.0] * 2, [1] * 3 + [-1] * 2, [0] * 5)
    once = inputs([2.0, 0.0], [1, -1], [0, 0])
    assert (
        dpo(thrice, config=config).terms["policy"][0] == dpo(once, config=config).terms["policy"][0]
    )


def test_a_pair_with_one_side_has_no_loss_no_gradient_and_no_metric() -> None:
    case = inputs([2.0, 1.0, -1.0], [1, 1, -1], [0, 1, 1])
    out = dpo(case, config=PAPER)
    assert out.terms["policy"][0] == 0
    assert all(len(metric.values) == 1 for metric in out.metrics.values())
    out.terms["policy"].sum().backward()  # type: ignore[no-untyped-call]
    assert case.logprobs.grad is not None
    assert case.logprobs.grad[0] == 0
    assert case.logprobs.grad[1:].abs().min() > 0


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "ipo_mean", "hinge"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_that_of_finite_differences(kind: str, smoothing: float) -> None:
    config = DpoConfig.model_validate(
        {"loss_type": kind, "label_smoothing": smoothing, "beta": 0.4}
    )

    def term(logprobs: torch.Tensor) -> torch.Tensor:
        return dpo(replace(TWO_PAIRS, logprobs=logprobs), config=config).terms["policy"]

    logprobs = TWO_PAIRS.logprobs.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(term, (logprobs,))


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "ipo_mean", "hinge"])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_a_policy_far_from_the_reference_has_finite_loss_and_gradient(
    kind: str, far: float
) -> None:
    case = inputs([far, -far], [1, -1], [0, 0])
    config = DpoConfig.model_validate({"loss_type": kind})
    term = dpo(case, config=config).terms["policy"]
    term.sum().backward()  # type: ignore[no-untyped-call]
    assert case.logprobs.grad is not None
    assert torch.isfinite(term).all()
    assert torch.isfinite(case.logprobs.grad).all()


@given(
    st.lists(st.floats(-20, 20), min_size=6, max_size=6),
    st.permutations(range(6)),
    st.floats(-5, 5),
)
@settings(max_examples=50, deadline=None)
def test_neither_the_order_of_tokens_nor_a_common_shift_of_both_models_matters(
    ratios: list[float], order: list[int], shift: float
) -> None:
    side, group = [1, 1, -1, 1, -1, -1], [0, 0, 0, 1, 1, 1]
    straight = dpo(inputs(ratios, side, group), config=PAPER).terms["policy"]
    shuffled = inputs(
        [ratios[i] for i in order], [side[i] for i in order], [group[i] for i in order], ref=shift
    )
    turned = dpo(shuffled, config=PAPER).terms["policy"]
    torch.testing.assert_close(turned, straight[list(order)])


def test_the_stage_keeps_pairs_whole_and_asks_for_the_reference() -> None:
    stage = make_loss(PAPER)
    assert stage.atom == "group"
    assert stage.needs == {"ref_logprobs"}
    assert not stage.needs_sampler_logprobs
