"""A written conversation in the tokens that an engine would have seen and sampled.

Each trained answer stands behind the template's generation prompt and is ended
by the end-of-turn token, as the agent loop keeps what was sampled
(`skyrl_kernel.token_rows`). So what is learned from data sets is what will be
sampled later.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from skyrl_kernel.chat_template import Template
from skyrl_kernel.errors import ModelError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import Completion, Message, Segment
from skyrl_kernel.token_rows import ConversationRow, Rows, StepRows

ASSISTANT = "assistant"
_NO_LIMIT = 2**31 - 1


def conversation_rows(
    messages: Sequence[Message], trained: Collection[int], tokenizer: Tokenizer
) -> tuple[Segment, ...]:
    """The token rows of a conversation, of which some answers are to be learned.

    One row; what stands behind the last trained answer is left out. Only where
    several answers are trained and the chat template rewrites earlier turns when
    a message follows (thinking that it takes out), there is a row for each of
    them, with the conversation as the engine would have seen it.

    Args:
        messages: The conversation.
        trained: Places of the assistant messages to learn, at least one; none at 0.
        tokenizer: Has the chat template.

    Raises:
        ModelError: The tokenizer has no chat template, or ends no turn.

    Example: the prompt is ids 1-2, the generation prompt 3, the answer 7 8, the
    end of turn 9; place 1 is trained:

        tokens    = [1, 2, 3, 7, 8, 9]
        loss_mask = [F, F, F, T, T, T]
    """
    last = max(trained)
    if len(trained) == 1:
        prompt = tokenizer.encode_chat(messages[:last], add_generation_prompt=True)
        tokens = np.concatenate([prompt, _sampled(messages[last], tokenizer)]).astype(np.int32)
        return (
            Segment(
                tokens=tokens,
                num_prompt_tokens=len(prompt),
                loss_mask=np.arange(len(tokens)) >= len(prompt),
            ),
        )
    start, rest = messages[: min(trained)], messages[min(trained) : last + 1]
    learned = [min(trained) + place in trained for place in range(len(rest))]
    template = _template(tokenizer)  # type: ignore[arg-type]  # mypy takes no protocol for hashable
    try:
        segments = _played(
            ConversationRow(start, template, False, _NO_LIMIT), rest, learned, template
        )
    except ModelError:  # it rewrites earlier turns; one that is missing is missed again
        segments = _played(StepRows(start, template, False, _NO_LIMIT), rest, learned, template)
    return tuple(segment for segment in segments if segment.loss_mask.any())


def _played(
    rows: Rows, messages: Sequence[Message], learned: Sequence[bool], template: Template
) -> tuple[Segment, ...]:
    """What the agent loop would have kept of messages that begin and end with an answer."""
    reply: list[Message] = []
    for place, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            reply.append(message)
            continue
        if place:
            rows.add_reply(reply)
            reply = []
        tokens = np.array(_sampled(message, template.tokenizer), dtype=np.int32)
        completion = Completion(
            tokens=tokens,
            logprobs=np.zeros(len(tokens), dtype=np.float32),  # the rows keep none
            versions=np.zeros(len(tokens), dtype=np.int32),
            finish_reason="stop",
        )
        rows.add_turn(completion, message["content"], is_sampled=learned[place])
    return rows.close(is_cut=False)


def _sampled(message: Message, tokenizer: Tokenizer) -> list[int]:
    end = end_of_turn(tokenizer)  # type: ignore[arg-type]  # mypy takes no protocol for hashable
    return [*tokenizer.encode(message["content"]).tolist(), end]


@lru_cache(maxsize=8)
def _template(tokenizer: Tokenizer) -> Template:
    return Template(tokenizer)


_ANSWERED: tuple[Message, ...] = (
    {"role": "user", "content": "Hello."},
    {"role": ASSISTANT, "content": "Hello."},
)


@lru_cache(maxsize=8)
def end_of_turn(tokenizer: Tokenizer) -> int:
    """The id that the chat template puts after an assistant's turn.

    A model may stop at several ids (end of turn, end of text); the one to learn
    is the one that its template writes. A template that writes none leaves the
    choice if there is only one.

    Raises:
        ModelError: There is no such id, or no way to tell which.
    """
    stops = tokenizer.eos_token_ids
    written = tokenizer.encode_chat(_ANSWERED, add_generation_prompt=False)
    for token in reversed(written.tolist()):
        if token in stops:
            return int(token)
    if len(stops) == 1:
        return next(iter(stops))
    raise ModelError(
        "every answer to learn ends with the model's end-of-turn token, but the chat template writes "
        f"none after an assistant's turn, and the tokenizer has {len(stops)} ids that end one "
        f"({sorted(stops)}); use a chat template that writes it, or name one eos_token_id in the "
        "model's generation_config.json"
    )
