"""Rows that continue each other become one.

Users train on what is locked here: do not "fix" a test without an explicit decision.
Cases marked SkyRL have the numbers that its own tests expect.
"""

import numpy as np
import pytest

from skyrl_kernel.merged_rows import merge_rows
from skyrl_kernel.records import NOT_SAMPLED, Segment


def step(
    prompt: list[int], response: list[int], mask: list[int] | None = None, logprob: float = -0.5
) -> Segment:
    loss_mask = np.array([0] * len(prompt) + (mask or [1] * len(response)), dtype=np.bool_)
    return Segment(
        tokens=np.array(prompt + response, dtype=np.int32),
        num_prompt_tokens=len(prompt),
        loss_mask=loss_mask,
        logprobs=(loss_mask * np.float32(logprob)).astype(np.float32),
        versions=np.where(loss_mask, 3, NOT_SAMPLED).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("steps", "tokens", "mask"),
    [
        ([([10], [20], None), ([10, 20, 30], [40, 41], None)], [10, 20, 30, 40, 41], [0, 1, 0, 1, 1]),
        ([([10], [20, 30], [1, 0]), ([10, 20, 30], [40], None)], [10, 20, 30, 40], [0, 1, 0, 1]),
        (
            [([10], [20, 30], [1, 0]), ([10, 20, 30, 35], [40], None)],
            [10, 20, 30, 35, 40],
            [0, 1, 0, 0, 1],
        ),
        (
            [([1], [2], None), ([1, 2, 3], [4], None), ([1, 2, 3, 4, 5], [6], None)],
            [1, 2, 3, 4, 5, 6],
            [0, 1, 0, 1, 0, 1],
        ),
        ([([10], [20], [0]), ([10, 20, 30], [40], [0])], [10, 20, 30, 40], [0, 0, 0, 0]),
    ],
    ids=["gap", "reply-in-the-row", "reply-and-gap", "three", "masked"],
)  # fmt: skip
def test_rows_are_joined_where_one_begins_the_next(
    steps: list[tuple[list[int], list[int], list[int] | None]], tokens: list[int], mask: list[int]
) -> None:  # SkyRL
    given_rows = [step(*one, logprob=-float(i + 1)) for i, one in enumerate(steps)]
    (joined,), owners = merge_rows(given_rows)

    assert joined.tokens.tolist() == tokens
    assert joined.loss_mask.astype(int).tolist() == mask
    assert joined.num_prompt_tokens == len(steps[0][0])
    assert owners == [0] * len(steps)
    assert joined.logprobs is not None
    assert joined.versions is not None
    place = 0
    for number, row in enumerate(given_rows):
        assert (joined.logprobs[: len(row.tokens)][row.loss_mask] == -(number + 1)).all()
        place += int(row.loss_mask.sum())
    assert (joined.versions == 3).sum() == place
    assert (joined.logprobs[~joined.loss_mask] == 0).all()


@pytest.mark.parametrize(
    "steps",
    [
        [([10], [20], None), ([99, 88], [40], None)],
        [([10], [20, 30], None), ([10, 20], [30, 40], None)],  # a response is no prompt
    ],
    ids=["another-prompt", "overlap"],
)
def test_rows_are_not_joined_otherwise(steps: list[tuple[list[int], list[int], None]]) -> None:
    given_rows = [step(*one) for one in steps]  # SkyRL
    joined, owners = merge_rows(given_rows)

    assert joined == given_rows
    assert owners == [0, 1]


def test_joining_begins_anew_after_a_break() -> None:
    steps = [([1], [2]), ([1, 2, 3], [4]), ([7], [8]), ([7, 8], [9])]
    joined, owners = merge_rows([step(*one) for one in steps])

    assert [row.tokens.tolist() for row in joined] == [[1, 2, 3, 4], [7, 8, 9]]
    assert owners == [0, 0, 1, 1]
    assert merge_rows([]) == ([], [])
