"""An episode as token rows while it is played: three layouts, one interface.

| layout | row | reply of the env | config |
|---|---|---|---|
| `ConversationRow` | one, each turn a message | templated, appended | the default |
| `MessageRow` | one, all turns in one assistant message | plain text, appended | ``generator.use_conversation_multi_turn=false`` |
| `StepRows` | one for each turn, the conversation before it as prompt | the conversation is templated again | ``generator.step_wise_trajectories=true`` |

In every layout what was sampled stands in its row as it was sampled, is trained
on where it was sampled, and nothing else is: text is tokenised where it comes
from the env, never where it comes from the policy.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from skyrl_kernel.chat_template import Template
from skyrl_kernel.merged_rows import merge_rows
from skyrl_kernel.records import NOT_SAMPLED, Completion, IntArray, Message, Segment


class Rows(Protocol):
    """What the agent loop asks of a layout."""

    places: list[tuple[int, int, int]]
    """Row, first token, and one past the last token of each turn so far."""

    @property
    def tokens(self) -> IntArray:
        """[T] what the next completion continues."""
        ...

    def add_turn(self, completion: Completion, action: str, *, is_sampled: bool) -> None:
        """Add a completion; where ``is_sampled`` is False, the text ``action`` in its place."""
        ...

    def add_reply(self, observations: Sequence[Message]) -> bool:
        """Add the env's reply; False, and nothing is added, if the row would be too long."""
        ...

    def close(self, *, is_cut: bool) -> tuple[Segment, ...]:
        """The finished rows; ``is_cut`` if the last turn did not end by itself."""
        ...


MakeRows = Callable[[Sequence[Message], Template, bool, int], Rows]
"""(conversation to start from, template, whether log-probs are kept, longest row to continue) → rows."""


class _Row:
    """A token row under construction."""

    def __init__(self, tokens: IntArray, *, keeps_logprobs: bool) -> None:
        self.tokens = tokens.astype(np.int32, copy=False)
        self._keeps_logprobs = keeps_logprobs
        self._num_prompt_tokens = len(tokens)
        self._sampled: list[tuple[int, int, Completion]] = []
        """Completions, where they start, and how many of their tokens are there."""

    def add(self, tokens: IntArray) -> None:
        """Tokens that the policy did not sample."""
        self.tokens = np.concatenate((self.tokens, tokens.astype(np.int32, copy=False)))

    def add_completion(self, completion: Completion) -> None:
        """Tokens that it did."""
        tokens = completion.tokens
        self._sampled.append((len(self.tokens), len(tokens), completion))
        self.add(tokens)

    def drop_last(self) -> None:
        """Take back the newest token."""
        self.tokens = self.tokens[:-1]
        if self._sampled:
            start, count, completion = self._sampled[-1]
            if start + count > len(self.tokens):
                self._sampled[-1] = (start, count - 1, completion)

    def segment(self) -> Segment:
        length = len(self.tokens)
        loss_mask = np.zeros(length, dtype=np.bool_)
        logprobs = versions = None
        if self._keeps_logprobs:
            logprobs = np.zeros(length, dtype=np.float32)
            versions = np.full(length, NOT_SAMPLED, dtype=np.int32)
        for start, count, completion in self._sampled:
            place = slice(start, start + count)
            loss_mask[place] = True
            if logprobs is not None and versions is not None:
                logprobs[place] = completion.logprobs[:count]
                versions[place] = completion.versions[:count]
        return Segment(
            tokens=self.tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            loss_mask=loss_mask,
            logprobs=logprobs,
            versions=versions,
        )


class _OneRow:
    """What the two layouts with one row share."""

    def __init__(
        self,
        messages: Sequence[Message],
        template: Template,
        keeps_logprobs: bool,
        max_tokens: int,
    ) -> None:
        self._template = template
        self._max_tokens = max_tokens
        prompt = template.tokenizer.encode_chat(messages, add_generation_prompt=True)
        self._row = _Row(prompt, keeps_logprobs=keeps_logprobs)
        self.places: list[tuple[int, int, int]] = []

    @property
    def tokens(self) -> IntArray:
        """See `Rows.tokens`."""
        return self._row.tokens

    def add_turn(self, completion: Completion, action: str, *, is_sampled: bool) -> None:
        """See `Rows.add_turn`."""
        row = self._row
        start = len(row.tokens)
        if is_sampled:
            row.add_completion(completion)
        else:  # not what was sampled, so not to be trained on
            row.add(self._template.tokenizer.encode(action))
        self.places.append((0, start, len(row.tokens)))

    @property
    def _is_ended(self) -> bool:
        """True if the newest token ends a turn."""
        return int(self._row.tokens[-1]) in self._template.eos_token_ids


class ConversationRow(_OneRow):
    """One row in which each completion and each reply is a message.

    A completion that lacks its end-of-turn token gets the template's, untrained,
    so that the conversation stays well-formed: before a reply, and at once where
    a stop string ended it.

    Args:
        messages: The conversation to start from.
        template: How it goes on.
        keeps_logprobs: Whether the sampler's log-probs go into the row.
        max_tokens: The longest row that may be continued.
        ends_stopped: ``generator.append_eos_token_after_stop_str_in_multi_turn``: False
            leaves a turn that a stop string ended as it is.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        template: Template,
        keeps_logprobs: bool,
        max_tokens: int,
        *,
        ends_stopped: bool = True,
    ) -> None:
        super().__init__(messages, template, keeps_logprobs, max_tokens)
        self._ends_stopped = ends_stopped
        self._was_stopped = False

    def add_turn(self, completion: Completion, action: str, *, is_sampled: bool) -> None:
        """See `Rows.add_turn`."""
        super().add_turn(completion, action, is_sampled=is_sampled)
        self._was_stopped = is_sampled and completion.finish_reason == "stop" and not self._is_ended
        if self._was_stopped and self._ends_stopped:
            self._row.add(self._template.end)

    def add_reply(self, observations: Sequence[Message]) -> bool:
        """See `Rows.add_reply`."""
        reply = self._template.reply(observations)
        if not self._is_ended and not self._was_stopped:
            reply = np.concatenate((self._template.end, reply))
        if len(self._row.tokens) + len(reply) > self._max_tokens:
            return False
        self._row.add(reply)
        return True

    def close(self, *, is_cut: bool) -> tuple[Segment, ...]:
        """See `Rows.close`."""
        return (self._row.segment(),)


class MessageRow(_OneRow):
    """One row in which all turns are one assistant message.

    A reply is its plain text. A completion's end-of-turn token is taken out of
    the row where the message goes on behind it; the whole message is ended by
    one, untrained if the policy did not sample it.
    """

    def add_reply(self, observations: Sequence[Message]) -> bool:
        """See `Rows.add_reply`."""
        reply = self._template.tokenizer.encode("".join(one["content"] for one in observations))
        row, start, stop = self.places[-1]
        is_ended = self._is_ended and stop > start
        if len(self._row.tokens) - is_ended + len(reply) > self._max_tokens:
            return False
        if is_ended:
            self._row.drop_last()
            self.places[-1] = (row, start, stop - 1)
        self._row.add(reply)
        return True

    def close(self, *, is_cut: bool) -> tuple[Segment, ...]:
        """See `Rows.close`."""
        if not is_cut and not self._is_ended:
            self._row.add(self._template.end)
        return (self._row.segment(),)


class StepRows:
    """One row for each turn, the whole conversation before it as its prompt.

    The conversation is templated anew for every turn, so a template may rewrite
    what stands before, such as leave out the thinking of earlier turns: the row
    is what the policy saw when it sampled.

    Args:
        messages: The conversation to start from.
        template: How it goes on.
        keeps_logprobs: Whether the sampler's log-probs go into the rows.
        max_tokens: The longest prompt of a later turn.
        merge: ``generator.merge_stepwise_output``; see `merge_rows`.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        template: Template,
        keeps_logprobs: bool,
        max_tokens: int,
        *,
        merge: bool = False,
    ) -> None:
        self._tokenizer = template.tokenizer
        self._keeps_logprobs = keeps_logprobs
        self._max_tokens = max_tokens
        self._merge = merge
        self._messages = list(messages)
        self._segments: list[Segment] = []
        self.tokens = self._tokenizer.encode_chat(messages, add_generation_prompt=True)
        self.places: list[tuple[int, int, int]] = []

    def add_turn(self, completion: Completion, action: str, *, is_sampled: bool) -> None:
        """See `Rows.add_turn`."""
        row = _Row(self.tokens, keeps_logprobs=self._keeps_logprobs)
        if is_sampled:
            row.add_completion(completion)
        else:
            row.add(self._tokenizer.encode(action))
        self.places.append((len(self._segments), len(self.tokens), len(row.tokens)))
        self._segments.append(row.segment())
        self._messages.append({"role": "assistant", "content": action})

    def add_reply(self, observations: Sequence[Message]) -> bool:
        """See `Rows.add_reply`."""
        self._messages += observations
        prompt = self._tokenizer.encode_chat(self._messages, add_generation_prompt=True)
        if len(prompt) > self._max_tokens:
            return False
        self.tokens = prompt
        return True

    def close(self, *, is_cut: bool) -> tuple[Segment, ...]:
        """See `Rows.close`."""
        if not self._merge:
            return tuple(self._segments)
        merged, owners = merge_rows(self._segments)
        self.places = [(owners[row], start, stop) for row, start, stop in self.places]
        return tuple(merged)
