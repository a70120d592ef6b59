"""Log-probs and values of whole token rows, computed in padded batches of similar length.

The padding stands to the right, so a causal model never sees it: no attention
mask is needed, and positions count from 0 in every row. Trainer and engine call
the same function, so that comparing their log-probs compares weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from skyrl_kernel.records import FloatArray, IntArray
from skyrl_kernel.torch.logprobs import selected_logprobs


def right_pad(rows: Sequence[IntArray], device: torch.device | str = "cpu") -> Tensor:
    """[B, T] int64 ids: the rows, filled up with 0 to the longest of them.

    Example:
        >>> right_pad([np.array([5, 6]), np.array([7])])
        tensor([[5, 6],
                [7, 0]])
    """
    padded = np.zeros((len(rows), max((len(row) for row in rows), default=0)), dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded).to(device)


@torch.no_grad()
def row_logprobs(
    forward: Callable[[Tensor], Tensor],
    rows: Sequence[IntArray],
    *,
    temperature: float,
    device: torch.device | str = "cpu",
    max_rows: int,
    max_tokens: int | None = None,
) -> list[FloatArray]:
    """Log-prob of each token given those before it in its row.

    Args:
        forward: A causal model: [B, T] ids → [B, T, V] logits.
        rows: [T] ids each, of any lengths.
        temperature: Divides the logits; above 0.
        device: Where ``forward`` wants its ids.
        max_rows: Most rows of one batch.
        max_tokens: Most tokens of one batch, padding included; a longer row
            stands alone. None: no bound.

    Returns:
        One [T] float32 array per row, in the order given: nats, 0 at index 0.
    """
    return row_numbers(
        lambda ids: selected_logprobs(forward(ids[:, :-1]), ids[:, 1:], temperature),
        rows,
        device=device,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )


@torch.no_grad()
def row_values(
    forward: Callable[[Tensor], Tensor],
    rows: Sequence[IntArray],
    *,
    device: torch.device | str = "cpu",
    max_rows: int,
    max_tokens: int | None = None,
) -> list[FloatArray]:
    """What a critic expects before each token of a row: its value at the token before.

    Args:
        forward: A causal critic: [B, T] ids → [B, T] values.
        rows: [T] ids each, of any lengths.
        device: Where ``forward`` wants its ids.
        max_rows: Most rows of one batch.
        max_tokens: As in `row_logprobs`.

    Returns:
        One [T] float32 array per row, in the order given: task units, 0 at index 0,
        before which there is nothing to judge by.

    Example: a critic whose value of a place is the id there.
        >>> [row.tolist() for row in row_values(lambda ids: ids, [np.array([5, 6, 7])], max_rows=1)]
        [[0.0, 5.0, 6.0]]
    """
    return row_numbers(
        lambda ids: forward(ids[:, :-1]),
        rows,
        device=device,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )


def count_passes(rows: Sequence[IntArray], *, max_rows: int, max_tokens: int | None = None) -> int:
    """How often `row_logprobs` and `row_values` call ``forward`` for these rows and bounds.

    Example: a row of one token has nothing to compute.
        >>> count_passes([np.array([5, 6]), np.array([7]), np.array([8, 9, 10])], max_rows=1)
        2
    """
    return len(_batches(_order(rows), [len(row) for row in rows], max_rows, max_tokens))


@torch.no_grad()
def row_numbers(
    compute: Callable[[Tensor], Tensor],
    rows: Sequence[IntArray],
    *,
    device: torch.device | str = "cpu",
    max_rows: int,
    max_tokens: int | None = None,
) -> list[FloatArray]:
    """A number of each token of a row but the first, whose is 0.

    Args:
        compute: [B, T] ids → [B, T - 1] numbers.
        rows: As in `row_logprobs`.
        device: As there.
        max_rows: As there.
        max_tokens: As there.
    """
    result = [np.zeros(len(row), dtype=np.float32) for row in rows]
    for batch in _batches(_order(rows), [len(row) for row in rows], max_rows, max_tokens):
        numbers = compute(right_pad([rows[i] for i in batch], device)).cpu().numpy()
        for line, i in zip(numbers, batch, strict=True):
            result[i][1:] = line[: len(rows[i]) - 1]
    return result


def _order(rows: Sequence[IntArray]) -> list[int]:
    """Places of the rows that have something to compute, the shortest first."""
    return sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: len(rows[i]))


def _batches(
    order: Sequence[int], lengths: Sequence[int], max_rows: int, max_tokens: int | None
) -> list[list[int]]:
    """Cut ``order``, sorted by length, into consecutive batches within both bounds."""
    batches: list[list[int]] = []
    for i in order:
        batch = batches[-1] if batches else []
        fits = len(batch) < max_rows and (
            max_tokens is None or (len(batch) + 1) * lengths[i] <= max_tokens
        )
        if batch and fits:
            batch.append(i)
        else:
            batches.append([i])
    return batches
