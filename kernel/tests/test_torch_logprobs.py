import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.torch import entropy, right_pad, row_logprobs, row_values, selected_logprobs


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.947537),
        ([1.0, 0.0, 0.0, 0.0], 1.268301),
        ([0.0, 0.0, 0.0, 0.0], math.log(4)),
    ],
)
def test_entropy_of_known_logits(logits: list[float], expected: float) -> None:
    assert entropy(torch.tensor([logits])).item() == pytest.approx(expected, abs=1e-6)


def test_a_high_temperature_flattens_a_distribution() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert entropy(logits, temperature=1e4).item() == pytest.approx(math.log(4), abs=1e-6)
    assert entropy(logits, temperature=2.0).item() == entropy(logits / 2).item()


def test_logprob_of_a_token_by_hand() -> None:
    # softmax of [0, ln 3] is [1/4, 3/4]; at temperature 1/2 the logits double: [1/10, 9/10]
    logits = torch.tensor([[0.0, math.log(3)]])
    token = torch.tensor([1])
    assert selected_logprobs(logits, token).exp().item() == pytest.approx(0.75)
    assert selected_logprobs(logits, token, temperature=0.5).exp().item() == pytest.approx(0.9)


def test_logprobs_are_float32_whatever_the_model_computes_in() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.bfloat16)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    assert selected_logprobs(logits, tokens).dtype == torch.float32
    assert entropy(logits).dtype == torch.float32


@given(st.floats(-50, 50), st.floats(0.1, 4))
def test_shifting_all_logits_changes_nothing(shift: float, temperature: float) -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0]])
    token = torch.tensor([2])
    torch.testing.assert_close(
        selected_logprobs(logits, token, temperature),
        selected_logprobs(logits + shift, token, temperature),
        atol=5e-4,
        rtol=0,
    )


def test_the_gradient_is_the_one_hot_minus_the_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    selected_logprobs(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([0.75, -0.75])  # [1 - 1/4, 0 - 3/4]


def bigram(ids: torch.Tensor) -> torch.Tensor:
    """Logits after token i favour token i + 1: log-probs of a row depend on its pairs only."""
    return 2.0 * torch.nn.functional.one_hot((ids + 1) % 5, 5).float()


HIT = 2 - math.log(math.e**2 + 4)
MISS = -math.log(math.e**2 + 4)


def test_row_logprobs_of_a_counting_model() -> None:
    rows = [np.array([1, 2, 3]), np.array([4]), np.array([0, 0]), np.array([], dtype=np.int32)]
    got = row_logprobs(bigram, rows, temperature=1.0, max_rows=2)
    assert [row.tolist() for row in got] == [
        pytest.approx([0.0, HIT, HIT]),
        [0.0],
        pytest.approx([0.0, MISS]),
        [],
    ]
    assert all(row.dtype == np.float32 for row in got)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=8),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 30)),
)
def test_batching_changes_neither_values_nor_order(
    rows: list[list[int]], max_rows: int, max_tokens: int | None
) -> None:
    arrays = [np.array(row, dtype=np.int32) for row in rows]
    got = row_logprobs(bigram, arrays, temperature=1.0, max_rows=max_rows, max_tokens=max_tokens)
    for row, logprobs in zip(arrays, got, strict=True):
        hits = (row[:-1] + 1) % 5 == row[1:]
        expected = [0.0, *np.where(hits, HIT, MISS)][: len(row)]
        assert logprobs.tolist() == pytest.approx(expected, abs=1e-6)


def test_batches_keep_within_both_bounds() -> None:
    shapes = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return bigram(ids)

    rows = [np.zeros(n, dtype=np.int32) for n in (9, 3, 3, 3, 5)]
    row_logprobs(forward, rows, temperature=1.0, max_rows=2, max_tokens=8)
    # sorted 3 3 | 3 (2 × 5 > 8 with the next) | 5 | 9 alone although above the bound;
    # the last token of a row predicts nothing and is not computed
    assert shapes == [(2, 2), (1, 2), (1, 4), (1, 8)]


def test_right_pad_of_nothing_is_empty() -> None:
    assert right_pad([]).shape == (0, 0)


def test_row_values_are_those_of_the_place_before_each_token() -> None:
    rows = [np.array([4, 5, 6]), np.array([7]), np.array([8, 9]), np.array([], dtype=np.int32)]
    got = row_values(lambda ids: ids / 2, rows, max_rows=2)
    assert [row.tolist() for row in got] == [[0, 2, 2.5], [0], [0, 4], []]
    assert all(row.dtype == np.float32 for row in got)
