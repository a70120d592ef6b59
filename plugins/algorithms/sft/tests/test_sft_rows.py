"""Which columns a row is read from, what of it is learned, and what is said of one that has neither."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.protocols import RolloutContext
from skyrl_kernel.records import Message, Prompt, Sampling, Segment
from skyrl_kernel.testing.byte_tokenizer import ByteTokenizer
from skyrl_sft.config import SftConfig
from skyrl_sft.plugin import Reader, no_reward
from skyrl_sft.rows import cut, token_rows


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


USER = [said("user", "6*7")]
CHAT = [*USER, said("assistant", "42"), said("user", "so?"), said("assistant", "yes")]


def row(prompt: Sequence[Message] = (), **extras: object) -> Prompt:
    return Prompt(uid="0:3", messages=prompt, env_class="none", extras=extras)


def read(prompt: Prompt, **config: Any) -> tuple[Segment, ...]:
    return token_rows(prompt, SftConfig(**config), ByteTokenizer())


def texts(prompt: Prompt, **config: Any) -> tuple[str, str]:
    """The whole row, and what of it is learned."""
    (segment,) = read(prompt, **config)
    return ByteTokenizer().decode(segment.tokens), ByteTokenizer().decode(
        segment.tokens[segment.loss_mask]
    )


# --- what is learned -----------------------------------------------------------------------------


def test_of_a_prompt_and_a_response_the_response_and_its_end_are_learned() -> None:
    whole, learned = texts(row(USER, response="42"))
    assert whole == "<user\n6*7><assistant\n42>"
    assert learned == "42>"


@pytest.mark.parametrize(
    ("what", "learned"),
    [
        ("last_assistant_message", "yes>"),
        ("all_assistant_messages", "42>yes>"),
        ("all_tokens", "user\n6*7><assistant\n42><user\nso?><assistant\nyes>"),
    ],
)
def test_of_a_conversation_is_learned_what_was_asked_for(what: str, learned: str) -> None:
    for chat in (CHAT, [*CHAT, said("user", "thanks")]):
        whole, found = texts(row(messages=chat), train_on_what=what)
        assert whole == "<user\n6*7><assistant\n42><user\nso?><assistant\nyes>"
        assert found == learned


def test_a_response_after_a_prompt_with_answers_is_a_conversation_too() -> None:
    prompt = row(CHAT[:3], response="yes")
    for what in ("last_assistant_message", "all_assistant_messages", "all_tokens"):
        assert texts(prompt, train_on_what=what) == texts(row(messages=CHAT), train_on_what=what)


def test_a_system_prompt_precedes_a_conversation_that_has_none() -> None:
    chat = [said("system", "be brief"), *CHAT]
    assert texts(row(messages=CHAT, system="be brief")) == texts(row(messages=chat))
    assert texts(row(messages=chat, system="be long")) == texts(row(messages=chat))


def test_the_conversation_may_stand_in_another_column() -> None:
    assert texts(row(turns=CHAT), messages_key="turns") == texts(row(messages=CHAT))


@pytest.mark.parametrize(
    ("columns", "mask"),
    [
        ({"loss_mask": [0, 0, 1, 1]}, [0, 0, 1, 1]),
        ({"loss_mask": [False, True, False, True]}, [0, 1, 0, 1]),
        ({"labels": [-100, -100, 7, 9]}, [0, 0, 1, 1]),
        ({"labels": [5, 6, 7, 9]}, [0, 1, 1, 1]),  # nothing predicts the first token
        ({"loss_mask": [1, 1, 1, 1], "labels": None}, [0, 1, 1, 1]),
    ],
)
def test_tokens_made_elsewhere_are_taken_as_they_are(
    columns: Mapping[str, Any], mask: list[int]
) -> None:
    (segment,) = read(row(input_ids=[5, 6, 7, 9], **columns))
    assert segment.tokens.tolist() == [5, 6, 7, 9]
    assert segment.tokens.dtype == np.int32
    assert segment.loss_mask.tolist() == [bool(one) for one in mask]
    assert segment.num_prompt_tokens == mask.index(1)


def test_tokens_count_before_a_conversation_and_that_before_a_response() -> None:
    tokens: dict[str, Any] = {"input_ids": [1, 2], "loss_mask": [0, 1]}
    assert read(row(USER, response="x", messages=CHAT, **tokens))[0].tokens.tolist() == [1, 2]
    assert texts(row(USER, response="x", messages=CHAT))[1] == "yes>"
    nothing: dict[str, Any] = {"input_ids": None, "messages": None}
    assert texts(row(USER, response="x", **nothing))[1] == "x>"


def test_everything_of_tokens_without_a_mask_is_learned_where_that_was_asked_for() -> None:
    (segment,) = read(row(input_ids=[5, 6, 7]), train_on_what="all_tokens")
    assert segment.loss_mask.tolist() == [False, True, True]


def test_a_long_row_is_cut_and_learned_as_far_as_it_goes() -> None:
    config = SftConfig(max_length=3)
    rows = token_rows(row(input_ids=[5, 6, 7, 9], loss_mask=[0, 0, 1, 1]), config, ByteTokenizer())
    (segment,) = cut(rows, config)
    assert segment.tokens.tolist() == [5, 6, 7]
    assert segment.loss_mask.tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"first 2 tokens.*2 stand before.*max_prompt_length=1"):
        cut(rows, SftConfig(max_length=2))


# --- what a row lacks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (row(), "needs the columns 'messages', or 'prompt' and 'response', .* has: none"),
        (row(USER), "the row has: prompt"),
        (row(response="42"), "the row has: response"),
        (row(USER, response=None, answer="42"), "the row has: answer, prompt"),
        (row(USER, response=["42"]), "column 'response' holds a list, not a text"),
        (row(messages="hello"), "column 'messages': found str 'hello'"),
        (row(messages=[{"role": "user"}]), "column 'messages': 'content' of message 0 is null"),
        (row(messages=USER), "no message of the role assistant, only of: user"),
        (row(messages=CHAT[1:]), "column 'messages' begins with an answer"),
        (row(messages=CHAT, tools=[{"name": "f"}]), "column 'tools'"),
        (row(input_ids=[1, 2]), "without 'loss_mask' or 'labels'"),
        (row(input_ids=[1, 2], loss_mask=[1]), "'loss_mask' has 1 entries for 2 input_ids"),
        (row(input_ids=[1, 2], loss_mask=[0, 2]), "other numbers than 0 and 1"),
        (row(input_ids=[1, 2], loss_mask=[1, 0]), "no token to learn"),
        (row(input_ids=[1, 2], loss_mask=[0.0, 1.0]), "'loss_mask' must be a list of whole"),
        (row(input_ids="1 2", loss_mask=[0, 1]), "'input_ids' must be a list of whole"),
        (row(input_ids=[], loss_mask=[]), "no token ids: it is empty"),
        (row(input_ids=[1, -2], loss_mask=[0, 1]), "one is negative"),
        (row(input_ids=[1, 2, 3], labels=[-100, 3, -100]), "has 3 at place 1.* has 2"),
    ],
)
def test_a_row_that_cannot_be_learned_says_what_it_lacks(prompt: Prompt, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(prompt)


# --- the stages -----------------------------------------------------------------------------------


def context() -> RolloutContext:
    nobody: Any = None
    return RolloutContext(
        phase="train",
        sample=0,
        seed=0,
        sampling=Sampling(),
        engine=nobody,
        tokenizer=ByteTokenizer(),
        host_env=nobody,
        max_prompt_tokens=100,
        max_input_tokens=100,
        max_turns=None,
    )


def test_nothing_was_sampled_so_there_are_no_turns_and_no_log_probs() -> None:
    trajectory = asyncio.run(Reader(SftConfig())(row(messages=CHAT), context()))
    assert trajectory.turns == ()
    assert trajectory.segments[0].logprobs is None
    assert trajectory.segments[0].versions is None
    assert trajectory.id == "0:3/0"
    assert list(trajectory.prompt.messages) == CHAT[:-1]  # for those who look at it
    (reward,) = no_reward([trajectory])
    assert (reward.turns, reward.total) == ((), 0.0)


def test_a_row_without_anything_to_learn_is_the_task_s_fault() -> None:
    with pytest.raises(TrajectoryError, match=r"row 0:3: .*the row has: prompt") as caught:
        asyncio.run(Reader(SftConfig())(row(USER), context()))
    assert caught.value.kind is FailureKind.TASK
    assert caught.value.plugin == "sft"


def test_a_row_is_measured_up_to_its_first_learned_token() -> None:
    reader = Reader(SftConfig(max_length=4))
    ids: dict[str, Any] = {"input_ids": [1, 2, 3, 4, 5], "loss_mask": [0, 0, 1, 1, 1]}
    assert reader.measure(10, row(**ids), ByteTokenizer()) == 2
    late = ids | {"loss_mask": [0, 0, 0, 0, 1]}
    assert reader.measure(3, row(**late), ByteTokenizer()) == 4  # left out: longer than 3
    with pytest.raises(ValueError, match="none to learn"):
        reader.measure(4, row(**late), ByteTokenizer())
