"""From a row's columns to token rows, and what of them is learned.

| columns | what they are |
|---|---|
| ``input_ids``, and ``loss_mask`` or ``labels`` | tokens, made elsewhere |
| ``messages`` | a conversation |
| ``prompt`` and ``response`` | a conversation's beginning, and its last answer as text |

The first kind whose columns are all there counts; a column that is null is not
there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skyrl_kernel.data import check_messages
from skyrl_kernel.data.conversation import ASSISTANT, conversation_rows
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import BoolArray, Message, Prompt, Segment
from skyrl_sft.config import SftConfig

IGNORED = -100
"""The label of a token that is not learned, as everywhere."""


def token_rows(prompt: Prompt, config: SftConfig, tokenizer: Tokenizer) -> tuple[Segment, ...]:
    """The rows that one row of the data set is learned from: one, or one per answer.

    Example: the prompt is ids 1-2, the generation prompt 3, the response 7 8,
    the end of turn 9. The segment is

        tokens    = [1, 2, 3, 7, 8, 9]
        loss_mask = [F, F, F, T, T, T]

    Raises:
        ValueError: The row lacks the columns of every kind, or one holds what it must
            not; names both. The caller says which row.
    """
    rows: tuple[Segment, ...]
    if _has(prompt, "input_ids"):
        rows = (_pretokenised(prompt, config),)
    else:
        rows = _answers(conversation(prompt, config), config, tokenizer)
    if not any(row.loss_mask.any() for row in rows):
        raise ValueError("it has no token to learn")
    return rows


def cut(rows: Sequence[Segment], config: SftConfig) -> tuple[Segment, ...]:
    """The rows up to ``trainer.sft.max_length`` tokens; one that then has nothing to learn is left out.

    Raises:
        ValueError: That is so of all of them.
    """
    limit = config.max_length
    if limit is None:
        return tuple(rows)
    short = tuple(_segment(row.tokens[:limit], row.loss_mask[:limit]) for row in rows)
    kept = tuple(row for row in short if row.loss_mask.any())
    if not kept:
        raise ValueError(
            f"the first {limit} tokens, which trainer.sft.max_length keeps, have none to learn: "
            f"{rows[0].num_prompt_tokens} stand before it. Raise that, or leave such rows out by "
            f"trainer.max_prompt_length={limit - 1}"
        )
    return kept


def conversation(prompt: Prompt, config: SftConfig) -> tuple[Message, ...]:
    """The row's conversation, up to its last answer.

    Raises:
        ValueError: It has none; see `token_rows`.
    """
    key = config.messages_key
    if _has(prompt, key):
        try:
            messages = check_messages(prompt.extras[key])
        except ValueError as error:
            raise ValueError(f"column '{key}': {error}") from error
        _refuse_tools(prompt)
    elif prompt.messages and _has(prompt, "response"):
        response = prompt.extras["response"]
        if not isinstance(response, str):
            raise ValueError(f"column 'response' holds a {type(response).__name__}, not a text")
        messages = (*prompt.messages, {"role": ASSISTANT, "content": response})
    else:
        raise ValueError(_lacking(prompt, key))
    system = prompt.extras.get(config.system_key)
    if isinstance(system, str) and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    answers = _answer_places(messages)
    if not answers:
        roles = ", ".join(dict.fromkeys(str(message["role"]) for message in messages))
        raise ValueError(f"column '{key}' has no message of the role assistant, only of: {roles}")
    if answers[0] == 0:
        raise ValueError(
            f"column '{key}' begins with an answer: no message of another role precedes it"
        )
    return messages[: answers[-1] + 1]


def _answers(
    messages: Sequence[Message], config: SftConfig, tokenizer: Tokenizer
) -> tuple[Segment, ...]:
    answers = _answer_places(messages)
    if config.train_on_what == "all_assistant_messages":
        return conversation_rows(messages, answers, tokenizer)
    rows = conversation_rows(messages, answers[-1:], tokenizer)
    return tuple(map(_all_tokens, rows)) if config.train_on_what == "all_tokens" else rows


def _answer_places(messages: Sequence[Message]) -> list[int]:
    return [place for place, one in enumerate(messages) if one["role"] == ASSISTANT]


def _all_tokens(row: Segment) -> Segment:
    """Nothing precedes the first token, so nothing predicts it."""
    return _segment(row.tokens, np.arange(len(row.tokens)) > 0)


def _segment(tokens: Any, mask: BoolArray) -> Segment:
    return Segment(
        tokens=np.asarray(tokens, dtype=np.int32),
        num_prompt_tokens=int(mask.argmax()) if mask.any() else len(mask),
        loss_mask=mask,
    )


# --- rows that were tokenised elsewhere ----------------------------------------------------


def _pretokenised(prompt: Prompt, config: SftConfig) -> Segment:
    ids = _integers(prompt, "input_ids")
    if not len(ids) or ids.min() < 0:
        raise ValueError("column 'input_ids' holds no token ids: it is empty, or one is negative")
    if _has(prompt, "loss_mask"):
        values = _integers(prompt, "loss_mask", len(ids))
        if not np.isin(values, (0, 1)).all():
            raise ValueError("column 'loss_mask' holds other numbers than 0 and 1")
        mask = values == 1
    elif _has(prompt, "labels"):
        labels = _integers(prompt, "labels", len(ids))
        mask = labels != IGNORED
        if (labels[mask] != ids[mask]).any():
            place = int(np.flatnonzero(mask & (labels != ids))[0])
            raise ValueError(
                f"column 'labels' has {labels[place]} at place {place}, where 'input_ids' has "
                f"{ids[place]}; a label is the token of its own place, or {IGNORED}"
            )
    elif config.train_on_what == "all_tokens":
        mask = np.ones(len(ids), dtype=np.bool_)
    else:
        raise ValueError(
            "column 'input_ids' comes without 'loss_mask' or 'labels', which say what is learned; "
            "add one, or learn everything by trainer.sft.train_on_what=all_tokens"
        )
    return _segment(ids, mask & (np.arange(len(ids)) > 0))


def _integers(prompt: Prompt, column: str, length: int | None = None) -> "np.ndarray[Any, Any]":
    value = prompt.extras[column]
    array = np.asarray(value if isinstance(value, list) else [value])
    is_whole = isinstance(value, list) and array.ndim == 1 and array.dtype.kind in "iub"
    if not is_whole and not (value == [] and isinstance(value, list)):
        raise ValueError(f"column '{column}' must be a list of whole numbers")
    if length is not None and len(array) != length:
        raise ValueError(f"column '{column}' has {len(array)} entries for {length} input_ids")
    return array.astype(np.int64)


# --- what a row lacks ------------------------------------------------------------------------


def _has(prompt: Prompt, column: str) -> bool:
    return prompt.extras.get(column) is not None


def _lacking(prompt: Prompt, key: str) -> str:
    found = [name for name in prompt.extras if _has(prompt, name)]
    columns = sorted([*(["prompt"] if prompt.messages else []), *found])
    return (
        f"supervised training needs the columns '{key}', or 'prompt' and 'response', or 'input_ids' "
        f"and 'loss_mask'; the row has: {', '.join(columns) or 'none'}"
    )


def _refuse_tools(prompt: Prompt) -> None:
    if prompt.extras.get("tools"):
        raise ValueError(
            "column 'tools' describes functions that the chat template would have to show, which is "
            "not there yet; tokenise such rows yourself ('input_ids' and 'loss_mask')"
        )
