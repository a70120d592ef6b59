"""A row with a preferred and another answer becomes a group of two trajectories.

Sample 0 is the preferred answer. The columns ``chosen`` and ``rejected`` hold
texts, messages that follow the prompt, or whole conversations; what both begin
with is the prompt, and every answer behind it is learned.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.data import check_messages
from skyrl_kernel.data.conversation import ASSISTANT, conversation_rows
from skyrl_kernel.protocols import CreditedGroup, Tokenizer
from skyrl_kernel.records import Message, Prompt, Scored, Segment, TokenAdvantages

SIDES = ("chosen", "rejected")
"""Columns, by sample."""


def pair_rows(prompt: Prompt, tokenizer: Tokenizer) -> tuple[tuple[Segment, ...], ...]:
    """The token rows of the preferred and of the other answer.

    Raises:
        ValueError: A column is missing or holds what it must not; names it. The caller
            says which row.
    """
    both = [_conversation(prompt, column) for column in SIDES]
    shared = _shared(*both)
    rows = []
    for column, messages in zip(SIDES, both, strict=True):
        answers = [i for i in range(shared, len(messages)) if messages[i]["role"] == ASSISTANT]
        if not answers:
            raise ValueError(
                f"column '{column}' has no answer, that is no message of the role assistant, behind "
                f"the {shared} messages that 'chosen' and 'rejected' begin with"
            )
        if answers[0] == 0:
            raise ValueError(
                "there is nothing that the answers answer to: no column 'prompt', and 'chosen' and "
                "'rejected' begin differently"
            )
        rows.append(conversation_rows(messages, answers, tokenizer))
    return tuple(rows)


def prompt_of(prompt: Prompt) -> tuple[Message, ...]:
    """What both conversations begin with."""
    both = [_conversation(prompt, column) for column in SIDES]
    return both[0][: _shared(*both)]


def _conversation(prompt: Prompt, column: str) -> tuple[Message, ...]:
    value = prompt.extras.get(column)
    before = tuple(prompt.messages)
    if value is None:
        found = [name for name, held in prompt.extras.items() if held is not None]
        columns = sorted([*(["prompt"] if before else []), *found])
        raise ValueError(
            "preference training needs the columns 'chosen' and 'rejected', and 'prompt' unless they "
            f"hold whole conversations; the row has: {', '.join(columns) or 'none'}"
        )
    if isinstance(value, str):
        return (*before, {"role": ASSISTANT, "content": value})
    try:
        messages = check_messages(value)
    except ValueError as error:
        raise ValueError(f"column '{column}': {error}") from error
    return messages if messages[: len(before)] == before else (*before, *messages)


def _shared(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many messages both begin with."""
    for place, (one, two) in enumerate(zip(first, second, strict=False)):
        if one != two:
            return place
    if len(first) == len(second):
        raise ValueError("columns 'chosen' and 'rejected' hold the same")
    return min(len(first), len(second))


def sides(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Advantage 1 for the preferred answer and −1 for the other: where each is to go.

    A pair of which one side was lost, or has no trained token, is not trained on.
    """
    return [[_credited(one, _is_whole(group)) for one in group] for group in groups]


def _credited(one: Scored, is_whole: bool) -> tuple[TokenAdvantages, ...]:
    side = np.float32(1 if one.trajectory.sample == 0 else -1)
    return tuple(
        TokenAdvantages(
            advantages=np.full(len(segment.tokens), side, dtype=np.float32),
            loss_mask=segment.loss_mask & is_whole,
        )
        for segment in one.trajectory.segments
    )


def _is_whole(group: Sequence[Scored]) -> bool:
    there = {
        one.trajectory.sample
        for one in group
        if any(segment.loss_mask.any() for segment in one.trajectory.segments)
    }
    return there == {0, 1}


def measure(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
    """``loss/incomplete_pairs``: pairs of a step that are not trained on."""
    whole = [
        {one.trajectory.sample for one, rows in group if any(row.loss_mask.any() for row in rows)}
        for group in groups
    ]
    return {"loss/incomplete_pairs": float(sum(there != {0, 1} for there in whole))}
