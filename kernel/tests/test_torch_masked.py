import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.torch import masked_mean, masked_var, masked_whiten

MASK = torch.tensor([True, True, False])


def test_masked_entries_may_be_nan() -> None:
    values = torch.tensor([1.0, 3.0, float("nan")])
    assert masked_mean(values, MASK).item() == 2.0
    assert masked_var(values, MASK).item() == 2.0  # (1 + 1) / (2 - 1)


def test_the_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.tensor([5.0]), torch.tensor([False])).item() == 0.0


def test_means_along_a_dimension() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 0.0]


@pytest.mark.parametrize("count", [0, 1])
def test_the_variance_of_fewer_than_two_values_is_refused(count: int) -> None:
    mask = torch.arange(3) < count
    with pytest.raises(ValueError, match=f"variance of {count} unmasked values is undefined"):
        masked_var(torch.ones(3), mask)


def test_whitening_by_hand() -> None:
    # returns 3, 2 of reinforce++: mean 2.5, sample variance 0.5, so ±0.5 / √0.5 = ±0.70711
    white = masked_whiten(torch.tensor([3.0, 2.0, 3.0]), MASK)
    assert white[MASK].tolist() == pytest.approx([0.70711, -0.70711], abs=1e-5)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20), st.floats(-50, 50))
def test_shifting_all_values_whitens_to_the_same(values: list[float], shift: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    mask = torch.ones(len(values), dtype=torch.bool)
    torch.testing.assert_close(
        masked_whiten(tensor + shift, mask, eps=1e-2), masked_whiten(tensor, mask, eps=1e-2)
    )
