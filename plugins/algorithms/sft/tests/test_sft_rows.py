"""A row becomes the tokens that the agent loop would have kept, had the model said the same."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.env import EnvStep
from skyrl_kernel.errors import FailureKind, ModelError, TrajectoryError
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
from skyrl_sft.rows import end_of_turn, no_reward, read_row

TURN, END, TEXT_END = 256, 300, 257
"""Start of a turn, its end, and the end of all text, which also stops a model."""
USER = [{"role": "user", "content": "6 * 7"}]


class Bytes:
    """One token per byte; every turn is ``TURN role newline text END``."""

    def __init__(
        self, stops: Sequence[int] = (TEXT_END, END), *, template_ends: bool = True
    ) -> None:
        self.eos_token_ids = frozenset(stops)
        self._ends = [END] if template_ends else []

    def encode(self, text: str) -> IntArray:
        return np.array(list(text.encode()), dtype=np.int32)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        ids: list[int] = []
        for message in messages:
            ids += [TURN, *f"{message['role']}\n{message['content']}".encode(), *self._ends]
        if add_generation_prompt:
            ids += [TURN, *b"assistant\n"]
        return np.array(ids, dtype=np.int32)

    def decode(self, tokens: IntArray) -> str:
        return bytes(int(t) for t in tokens if t < TURN).decode()


class Says:
    """An engine that samples one text, and ends the turn."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        tokens = np.array([*self.text.encode(), END], dtype=np.int32)
        return [
            Completion(
                tokens=tokens,
                logprobs=np.full(len(tokens), -1.0, dtype=np.float32),
                versions=np.zeros(len(tokens), dtype=np.int32),
                finish_reason="stop",
            )
            for _ in requests
        ]


class OneTurn:
    """An env that ends after the first answer."""

    async def init(self) -> Sequence[Message]:
        return USER

    async def step(self, action: str) -> EnvStep:
        return EnvStep(observations=[], reward=1.0, done=True, metadata={})

    async def finish(self) -> Mapping[str, float]:
        return {}

    async def discard(self) -> None:
        return None


def context(tokenizer: Bytes, engine: Any = None) -> RolloutContext:
    return RolloutContext(
        phase="train",
        sample=0,
        seed=0,
        sampling=Sampling(),
        engine=engine,
        tokenizer=tokenizer,
        host_env=lambda prompt: OneTurn(),
        max_prompt_tokens=100,
        max_input_tokens=100,
        max_turns=None,
    )


def row(**extras: object) -> Prompt:
    return Prompt(uid="0:3", messages=USER, env_class="none", extras=extras)


def read(response: str, tokenizer: Bytes | None = None) -> Segment:
    (segment,) = asyncio.run(
        read_row(row(response=response), context(tokenizer or Bytes()))
    ).segments
    return segment


@pytest.mark.parametrize("text", ["42", "", "sechs × sieben = 42\n"])
def test_a_row_has_the_tokens_that_the_agent_loop_would_have_kept(text: str) -> None:
    played = asyncio.run(Agent()(row(), context(Bytes(), Says(text))))
    sampled = played.segments[0]
    got = read(text)
    assert got.tokens.tolist() == sampled.tokens.tolist()
    assert got.tokens.dtype == sampled.tokens.dtype
    assert got.loss_mask.tolist() == sampled.loss_mask.tolist()
    assert got.num_prompt_tokens == sampled.num_prompt_tokens


def test_only_the_response_and_its_end_are_trained_on() -> None:
    segment = read("42")
    trained = segment.tokens[segment.loss_mask]
    assert trained.tolist() == [ord("4"), ord("2"), END]
    assert segment.loss_mask[segment.num_prompt_tokens :].all()
    assert not segment.loss_mask[: segment.num_prompt_tokens].any()


def test_nothing_was_sampled_so_there_are_no_turns_and_no_log_probs() -> None:
    trajectory = asyncio.run(read_row(row(response="42"), context(Bytes())))
    assert trajectory.turns == ()
    assert trajectory.segments[0].logprobs is None
    assert trajectory.segments[0].versions is None
    (reward,) = no_reward([trajectory])
    assert (reward.turns, reward.total) == ((), 0.0)


def test_the_end_that_is_learned_is_the_one_that_the_template_writes() -> None:
    # both stop the model, and TEXT_END is the smaller id
    assert end_of_turn(Bytes((TEXT_END, END))) == END


def test_a_template_that_ends_no_turn_leaves_the_only_stop() -> None:
    assert end_of_turn(Bytes((TEXT_END,), template_ends=False)) == TEXT_END


@pytest.mark.parametrize("stops", [(), (TEXT_END, END)])
def test_a_model_whose_end_of_turn_cannot_be_told_is_refused(stops: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=rf"has {len(stops)} ids .* name one eos_token_id"):
        read("42", Bytes(stops, template_ends=False))


@pytest.mark.parametrize(
    ("extras", "has"),
    [
        ({}, "nothing"),
        ({"response": None, "answer": "42"}, "answer, response"),
        ({"response": ["42"]}, "response"),
    ],
)
def test_a_row_without_a_text_to_learn_is_the_task_s_fault(
    extras: dict[str, object], has: str
) -> None:
    with pytest.raises(
        TrajectoryError, match=f"row 0:3 has no text in the column 'response'.* it has: {has}$"
    ) as caught:
        asyncio.run(read_row(row(**extras), context(Bytes())))
    assert caught.value.kind is FailureKind.TASK
    assert caught.value.plugin == "sft"
