"""A written conversation becomes the tokens that the agent loop would have kept."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.data.conversation import conversation_rows, end_of_turn
from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.env import EnvStep
from skyrl_kernel.errors import ModelError
from skyrl_kernel.protocols import RolloutContext
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    IntArray,
    Message,
    Prompt,
    Sampling,
    Segment,
)
from skyrl_kernel.token_rows import StepRows

TURN, END, TEXT_END = 256, 300, 257
"""Start of a turn, its end, and the end of all text, which also stops a model."""


class Bytes:
    """One token per byte; every turn is ``TURN role newline text END newline``.

    Args:
        stops: Ids that end a turn.
        template_ends: Whether the template writes END.
        forgets: Whether it takes ``<…>`` out of every answer but the last message.
    """

    def __init__(
        self,
        stops: Sequence[int] = (TEXT_END, END),
        *,
        template_ends: bool = True,
        forgets: bool = False,
    ) -> None:
        self.eos_token_ids = frozenset(stops)
        self._ends = [END] if template_ends else []
        self._forgets = forgets

    def encode(self, text: str) -> IntArray:
        return np.array(list(text.encode()), dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        ids: list[int] = []
        for place, message in enumerate(messages):
            text = message["content"]
            is_last = place == len(messages) - 1
            if self._forgets and message["role"] == "assistant":
                text = f"<>{text}" if is_last else text.partition(">")[2] or text
            ids += [TURN, *f"{message['role']}\n{text}".encode(), *self._ends, ord("\n")]
        if add_generation_prompt:
            ids += [TURN, *b"assistant\n"]
        return np.array(ids, dtype=np.int32)

    def decode(self, tokens: IntArray, *, skip_special_tokens: bool = True) -> str:
        return bytes(int(t) for t in tokens if t < TURN).decode()


class Says:
    """An engine that samples these texts one after the other, and ends each turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        out = []
        for _ in requests:
            tokens = np.array([*self.texts.pop(0).encode(), END], dtype=np.int32)
            out.append(
                Completion(
                    tokens=tokens,
                    logprobs=np.full(len(tokens), -1.0, dtype=np.float32),
                    versions=np.zeros(len(tokens), dtype=np.int32),
                    finish_reason="stop",
                )
            )
        return out


class Script:
    """An env that starts a conversation and answers what the data says."""

    def __init__(self, start: Sequence[Message], replies: Sequence[Sequence[Message]]) -> None:
        self.start, self.replies = start, list(replies)

    async def init(self) -> Sequence[Message]:
        return self.start

    async def step(self, action: str) -> EnvStep:
        done = not self.replies
        observations = [] if done else [dict(one) for one in self.replies.pop(0)]
        return EnvStep(observations=observations, reward=0.0, done=done, metadata={})

    async def finish(self) -> Mapping[str, float]:
        return {}

    async def discard(self) -> None:
        return None


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CHAT = [
    said("system", "be brief"),
    said("user", "6 * 7"),
    said("assistant", "<hm>42"),
    said("user", "sure?"),
    said("tool", "yes"),
    said("assistant", "<ok>42, sechs × sieben"),
    said("user", "thanks"),
]


def played(tokenizer: Bytes, *, steps: bool = False) -> tuple[Segment, ...]:
    """The rows of the agent loop when the model says what stands in `CHAT`."""
    env = Script(CHAT[:2], [CHAT[3:5]])
    engine: Any = Says([CHAT[2]["content"], CHAT[5]["content"]])
    context = RolloutContext(
        phase="train",
        sample=0,
        seed=0,
        sampling=Sampling(),
        engine=engine,
        tokenizer=tokenizer,
        host_env=lambda prompt: env,
        max_prompt_tokens=1000,
        max_input_tokens=1000,
        max_turns=None,
    )
    agent = Agent(StepRows) if steps else Agent()
    prompt = Prompt(uid="0:0", messages=CHAT[:2], env_class="none")
    return asyncio.run(agent(prompt, context)).segments


def assert_same(got: Sequence[Segment], expected: Sequence[Segment]) -> None:
    assert len(got) == len(expected)
    for one, two in zip(got, expected, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.tokens.dtype == two.tokens.dtype
        assert one.loss_mask.tolist() == two.loss_mask.tolist()
        assert one.num_prompt_tokens == two.num_prompt_tokens


def test_all_answers_are_one_row_as_the_agent_loop_would_have_kept_it() -> None:
    got = conversation_rows(CHAT, [2, 5], Bytes())
    assert_same(got, played(Bytes()))
    assert got[0].logprobs is None
    assert got[0].versions is None


def test_the_last_answer_has_the_tokens_of_that_row_and_its_mask_alone() -> None:
    (both,) = conversation_rows(CHAT, [2, 5], Bytes())
    (last,) = conversation_rows(CHAT, [5], Bytes())
    assert last.tokens.tolist() == both.tokens.tolist()
    trained = Bytes().decode(last.tokens[last.loss_mask])
    assert trained == "<ok>42, sechs × sieben"
    assert last.tokens[-1] == END


def test_a_template_that_rewrites_earlier_turns_gives_a_row_per_answer() -> None:
    got = conversation_rows(CHAT, [2, 5], Bytes(forgets=True))
    assert_same(got, played(Bytes(forgets=True), steps=True))
    assert "<hm>" not in Bytes().decode(got[1].tokens)


def test_an_answer_between_that_is_not_learned_is_only_read() -> None:
    chat = [*CHAT, said("assistant", "bye")]
    (row,) = conversation_rows(chat, [2, 7], Bytes())
    assert Bytes().decode(row.tokens[row.loss_mask]) == "<hm>42bye"
    assert row.tokens.tolist() == conversation_rows(chat, [7], Bytes())[0].tokens.tolist()


def test_two_answers_in_a_row_have_a_header_each() -> None:
    chat = [said("user", "a"), said("assistant", "b"), said("assistant", "c")]
    (row,) = conversation_rows(chat, [1, 2], Bytes())
    assert Bytes().decode(row.tokens) == "user\na\nassistant\nb\nassistant\nc"


def test_the_end_that_is_learned_is_the_one_that_the_template_writes() -> None:
    assert end_of_turn(Bytes((TEXT_END, END))) == END  # though TEXT_END is the smaller id


def test_a_template_that_ends_no_turn_leaves_the_only_stop() -> None:
    assert end_of_turn(Bytes((TEXT_END,), template_ends=False)) == TEXT_END


@pytest.mark.parametrize("stops", [(), (TEXT_END, END)])
def test_a_model_whose_end_of_turn_cannot_be_told_is_refused(stops: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=rf"has {len(stops)} ids .* name one eos_token_id"):
        conversation_rows(CHAT, [2], Bytes(stops, template_ends=False))
