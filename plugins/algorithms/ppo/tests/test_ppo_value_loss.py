"""The critic's loss against numbers worked out by hand, and against calculus."""

from collections.abc import Generator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Loss
from skyrl_kernel.torch import LossInputs, LossTerms, MetricSums, ValueInputs, value_objective
from skyrl_ppo import clipped_value_loss, gae

value = st.floats(-5, 5, allow_subnormal=False)
tokens = st.lists(st.tuples(value, value, value), min_size=1, max_size=6)


def test_four_tokens_by_hand() -> None:
    # old value 0, return 1, clip 0.2:
    #   V = 0.1  within the clip          ½ · 0.9² = 0.405
    #   V = 0.5  further than 0.2         ½ · max(0.5², 0.8²) = 0.32, no gradient
    #   V = -1   the wrong way, far       ½ · max(2², 1.2²) = 2
    #   V = 3    beyond the return, far   ½ · max(2², 0.8²) = 2: the clip does not hide an overshoot
    values = torch.tensor([0.1, 0.5, -1.0, 3.0], requires_grad=True)
    loss, clipped = clipped_value_loss(values, torch.zeros(4), torch.ones(4), 0.2)
    torch.testing.assert_close(loss, torch.tensor([0.405, 0.32, 2.0, 2.0]))
    assert clipped.tolist() == [False, True, False, False]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([-0.9, 0.0, -2.0, 2.0]))


def test_its_gradient_is_that_of_finite_differences() -> None:
    values = torch.tensor([0.1, 0.5, -1.0, 3.0], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda now: clipped_value_loss(now, old, returns, 0.2)[0], (values,)
    )


@given(tokens)
def test_it_is_never_below_half_the_squared_error_and_equal_to_it_near_the_old_value(
    rows: list[tuple[float, float, float]],
) -> None:
    values, old, returns = torch.tensor(rows, dtype=torch.float64).T
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    free = 0.5 * (values - returns) ** 2
    assert (loss >= free).all()
    near = (values - old).abs() <= 0.2
    torch.testing.assert_close(loss[near], free[near])
    assert not clipped[(values - old).abs() < 0.19].any()


def test_rounding_does_not_look_like_a_clip() -> None:
    """In float32 ``old + (V - old)`` is another number than V for one token in six."""
    numbers = torch.Generator().manual_seed(0)
    values, old = 0.2 * torch.rand(2, 10_000, generator=numbers)
    returns = torch.randn(10_000, generator=numbers)
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    assert not clipped.any()
    assert loss.tolist() == (0.5 * (values - returns) ** 2).tolist()


@given(tokens, value)
def test_moving_values_and_returns_together_changes_nothing(
    rows: list[tuple[float, float, float]], distance: float
) -> None:
    values, old, returns = torch.tensor(rows, dtype=torch.float64).T
    one, _ = clipped_value_loss(values, old, returns, 0.2)
    other, _ = clipped_value_loss(values + distance, old + distance, returns + distance, 0.2)
    torch.testing.assert_close(one, other)


def test_extremes_stay_finite() -> None:
    far = torch.tensor([1e4, -1e4, 0.0])
    loss, _ = clipped_value_loss(far, torch.zeros(3), -far, 0.2)
    assert torch.isfinite(loss).all()
    empty, clipped = clipped_value_loss(*torch.zeros(3, 0), 0.2)
    assert empty.shape == clipped.shape == (0,)


# --- the wrapper ---------------------------------------------------------------------------


def policy_only(inputs: LossInputs) -> LossTerms:
    return LossTerms(terms={"policy": inputs.logprobs})


INNER = Loss(fn=policy_only, needs=frozenset({"old_logprobs"}))


def wrapped(inner: Loss | None, **config: object) -> Loss | None:
    """What the hook makes of ``inner``."""
    hook: Generator[None, Loss | None, Loss | None] = gae.loss(
        {AlgorithmConfig: AlgorithmConfig(**config)}
    )
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(inner)
    made: Loss | None = ended.value.value
    return made


def inputs(values: Tensor) -> ValueInputs:
    count = len(values)
    return ValueInputs(
        trajectory=torch.zeros(count, dtype=torch.int64),
        group=torch.zeros(count, dtype=torch.int64),
        position=torch.arange(count),
        old_values=torch.zeros(count),
        values=values,
        returns=torch.ones(count),
    )


def test_it_goes_around_the_policy_s_loss_only_where_advantages_are_gae_s() -> None:
    assert wrapped(INNER, advantage_estimator="grpo") is INNER
    assert wrapped(None, advantage_estimator="gae") is None
    made = wrapped(INNER, advantage_estimator="gae")
    assert made is not None
    assert made.needs == {"old_logprobs", "values"}
    assert made.coefficients == {"policy": 1.0, "value": 1.0}
    assert made.atom == INNER.atom
    assert made.fn is INNER.fn


def test_the_term_is_weighed_and_told_under_skyrl_s_names() -> None:
    made = wrapped(INNER, advantage_estimator="gae", value_clip=0.2)
    assert made is not None
    batch = inputs(torch.tensor([0.1, 0.5]))
    weights = {"policy": torch.ones(2), "value": torch.tensor([0.25, 0.75])}
    scalar, out = value_objective(made, batch, weights)
    assert scalar.item() == pytest.approx(0.25 * 0.405 + 0.75 * 0.32)
    sums = MetricSums()
    sums.add(batch, out, weights)
    told = sums.result()
    assert told["critic/critic_loss"] == pytest.approx(0.25 * 0.405 + 0.75 * 0.32)
    assert told["critic/values_mean"] == pytest.approx(0.3)
    assert told["critic/values_clipfrac"] == 0.5
