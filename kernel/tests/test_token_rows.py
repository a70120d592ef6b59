"""The layouts of an episode in token rows, token by token.

Users train on what is locked here: do not "fix" a test without an explicit decision.
Cases marked SkyRL have the numbers that its own tests expect.

CharTokenizer: a message is [role, one id per character, END]; ids of characters are
code point + 8, roles are 1-4, END is 0. A prompt "x" is [USER, x, END, ASSISTANT].
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.config import GeneratorConfig
from skyrl_kernel.defaults.agent import Agent, layout
from skyrl_kernel.records import (
    NOT_SAMPLED,
    IntArray,
    Message,
    Sampling,
    StopReason,
    Trajectory,
)
from skyrl_kernel.testing.scripted import CharTokenizer
from skyrl_kernel.testing.scripted.episode import Says, play
from skyrl_kernel.testing.scripted.tokenizer import END, ROLES
from skyrl_kernel.token_rows import ConversationRow, MessageRow, StepRows

USER, ASSISTANT = ROLES["user"], ROLES["assistant"]
PROMPT = [USER, ord("x") + 8, END, ASSISTANT]
STEPS = Agent(StepRows)
MERGED = Agent(partial(StepRows, merge=True))
MESSAGE = Agent(MessageRow)


def char(text: str) -> list[int]:
    return [ord(one) + 8 for one in text]


def reply(text: str) -> list[int]:
    """What the template puts between two completions."""
    return [USER, *char(text), END, ASSISTANT]


def masks(trajectory: Trajectory) -> list[list[int]]:
    return [segment.loss_mask.astype(int).tolist() for segment in trajectory.segments]


def rows(trajectory: Trajectory) -> list[list[int]]:
    return [segment.tokens.tolist() for segment in trajectory.segments]


def places(trajectory: Trajectory) -> list[tuple[int, int, int]]:
    return [(turn.segment, turn.start, turn.stop) for turn in trajectory.turns]


def is_equal(one: Trajectory, other: Trajectory) -> bool:
    """Equal rows, masks, log-probs and versions, and turns at the same places."""
    return places(one) == places(other) and all(
        a.num_prompt_tokens == b.num_prompt_tokens
        and all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("tokens", "loss_mask", "logprobs", "versions")
        )
        for a, b in zip(one.segments, other.segments, strict=True)
    )


# --- one message ------------------------------------------------------------------------


def test_in_one_message_a_reply_is_plain_text_and_takes_the_place_of_the_end_token() -> None:
    trajectory = play(["abc", "def"], {"rewards": [0.3, 1.7], "replies": ["q"]}, agent=MESSAGE)

    # SkyRL: 3 tokens + 1 of the reply + 4 tokens; rewards at 2 and at 7
    assert rows(trajectory) == [[*PROMPT, *char("abc"), *char("q"), *char("def"), END]]
    assert masks(trajectory) == [[0] * 4 + [1] * 3 + [0] + [1] * 4]
    assert places(trajectory) == [(0, 4, 7), (0, 8, 12)]
    assert [turn.reward for turn in trajectory.turns] == [0.3, 1.7]
    (segment,) = trajectory.segments
    assert segment.logprobs is not None
    assert segment.versions is not None
    # of [-1, -4/3, -5/3, -2] the last went with its token
    assert segment.logprobs[4:8] == pytest.approx([-1, -4 / 3, -5 / 3, 0])
    assert segment.versions[4:].tolist() == [10, 11, 12, NOT_SAMPLED, 20, 21, 22, 23]


def test_a_single_turn_in_one_message_is_as_sampled() -> None:
    assert is_equal(play(["abc"], agent=MESSAGE), play(["abc"]))


def test_one_message_that_a_stop_string_ended_gets_an_end_token_that_is_not_trained_on() -> None:
    trajectory = play(["abc"], agent=MESSAGE, sampling=Sampling(stop=("c",)))

    # SkyRL trains on the end token that it appends, which nobody sampled
    assert rows(trajectory) == [[*PROMPT, *char("abc"), END]]
    assert masks(trajectory) == [[0] * 4 + [1] * 3 + [0]]


def test_one_message_that_was_cut_off_gets_no_end_token() -> None:
    trajectory = play(["abcdef"], agent=MESSAGE, sampling=Sampling(max_tokens=3))

    assert trajectory.stop_reason is StopReason.LENGTH
    assert rows(trajectory) == [[*PROMPT, *char("abc")]]


@pytest.mark.parametrize(("limit", "turns"), [(8, 2), (7, 1)])
def test_the_limit_of_one_message_does_not_count_the_end_token_that_is_taken_out(
    limit: int, turns: int
) -> None:  # 4 + 4 - 1 + 1
    row = {"rewards": [0.0, 0.0], "replies": ["q"]}
    trajectory = play(["abc", "d"], row, agent=MESSAGE, max_input_tokens=limit)

    assert len(trajectory.turns) == turns
    if turns == 1:  # nothing was taken out
        assert trajectory.stop_reason is StopReason.LENGTH
        assert rows(trajectory) == [[*PROMPT, *char("abc"), END]]


def test_a_completion_that_is_an_end_token_leaves_nothing_in_a_message_that_goes_on() -> None:
    trajectory = play(["", "d"], {"rewards": [0.0, 1.0], "replies": ["q"]}, agent=MESSAGE)

    assert rows(trajectory) == [[*PROMPT, *char("qd"), END]]
    assert places(trajectory) == [(0, 4, 4), (0, 5, 7)]


def test_a_postprocessed_action_in_one_message_is_never_trained_on() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"], "postprocess": "12"}
    trajectory = play(["abc", "def"], row, agent=MESSAGE)

    assert rows(trajectory) == [[*PROMPT, *char("12q12"), END]]
    assert not np.any(masks(trajectory))


# --- stop strings in a conversation -----------------------------------------------------


def test_a_turn_that_a_stop_string_ended_is_closed_untrained() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"]}
    trajectory = play(["abcd", "ec"], row, sampling=Sampling(stop=("c",)))

    assert rows(trajectory) == [[*PROMPT, *char("abc"), END, *reply("q"), *char("ec"), END]]
    assert masks(trajectory) == [[0] * 4 + [1] * 3 + [0] * 5 + [1] * 2 + [0]]
    assert [turn.action for turn in trajectory.turns] == ["abc", "ec"]


def test_without_the_end_token_the_reply_follows_the_stop_string() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"]}
    agent = Agent(partial(ConversationRow, ends_stopped=False))
    trajectory = play(["abcd", "ec"], row, sampling=Sampling(stop=("c",)), agent=agent)

    assert rows(trajectory) == [[*PROMPT, *char("abc"), *reply("q"), *char("ec")]]


def test_a_turn_that_is_cut_off_is_closed_whatever_is_said_of_stop_strings() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"]}
    agent = Agent(partial(ConversationRow, ends_stopped=False))
    sampling = Sampling(stop=("z",), max_tokens=3)
    trajectory = play(["abcdef", "g"], row, sampling=sampling, agent=agent)

    assert rows(trajectory) == [[*PROMPT, *char("abc"), END, *reply("q"), *char("g"), END]]


# --- step by step -----------------------------------------------------------------------


def test_step_by_step_each_turn_is_a_row_behind_the_whole_conversation() -> None:
    row = {"rewards": [0.5, 0.25], "replies": ["q"]}
    engine = Says(["abc", "de"])
    trajectory = play([], row, engine=engine, agent=STEPS)

    first = [*PROMPT, *char("abc"), END]
    assert rows(trajectory) == [first, [*first, *reply("q"), *char("de"), END]]
    assert masks(trajectory) == [[0] * 4 + [1] * 4, [0] * 12 + [1] * 3]
    assert [segment.num_prompt_tokens for segment in trajectory.segments] == [4, 12]
    assert places(trajectory) == [(0, 4, 8), (1, 12, 15)]
    assert [turn.reward for turn in trajectory.turns] == [0.5, 0.25]
    assert [request.tokens.tolist() for request in engine.requests] == [
        PROMPT,
        [*first, *reply("q")],
    ]
    assert trajectory.num_completion_tokens == 7
    assert trajectory.version == 10


def test_step_by_step_the_length_limit_is_that_of_the_next_prompt() -> None:
    row = {"rewards": [1.0] * 3, "replies": ["q"] * 3}
    trajectory = play(["abc"] * 3, row, agent=STEPS, max_input_tokens=11)  # the second has 12

    assert trajectory.stop_reason is StopReason.LENGTH
    assert len(trajectory.segments) == len(trajectory.turns) == 1


class Forgets(CharTokenizer):
    """Drops the text of all assistant turns but the last, as thinking models do."""

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> IntArray:
        last = len(messages) - 1
        kept = [
            {**m, "content": ""} if m["role"] == "assistant" and i < last else m
            for i, m in enumerate(messages)
        ]
        return super().encode_chat(kept, add_generation_prompt=add_generation_prompt)


def test_step_by_step_a_template_may_rewrite_earlier_turns() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"]}
    trajectory = play(["abc", "de"], row, tokenizer=Forgets(), agent=STEPS)

    assert rows(trajectory) == [
        [*PROMPT, *char("abc"), END],
        [*PROMPT, END, *reply("q"), *char("de"), END],  # as the policy saw it
    ]
    # what was rewritten is no beginning of what follows, so nothing is joined
    assert is_equal(play(["abc", "de"], row, tokenizer=Forgets(), agent=MERGED), trajectory)


def test_step_by_step_a_postprocessed_action_is_in_the_history_and_not_trained_on() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"], "postprocess": "12"}
    trajectory = play(["abc", "def"], row, agent=STEPS)

    assert rows(trajectory)[1] == [*PROMPT, *char("12"), END, *reply("q"), *char("12")]
    assert not any(map(any, masks(trajectory)))


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(max_size=6), min_size=1, max_size=4),
    replies=st.lists(st.text(min_size=1, max_size=5), min_size=4, max_size=4),
    max_tokens=st.integers(1, 8),
    stop=st.sampled_from([(), ("a",)]),
)
def test_merged_steps_are_the_conversation_where_the_template_only_appends(
    texts: list[str], replies: list[str], max_tokens: int, stop: tuple[str, ...]
) -> None:
    row = {"rewards": [0.0] * len(texts), "replies": replies}
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    conversation = play(texts, row, sampling=sampling)
    merged = play(texts, row, sampling=sampling, agent=MERGED)

    (segment,) = conversation.segments
    if stop and segment.tokens[-1] == END and not segment.loss_mask[-1]:
        # a conversation is closed behind a last stop string, a step is not
        arrays = (segment.tokens, segment.loss_mask, segment.logprobs, segment.versions)
        tokens, loss_mask, logprobs, versions = (a if a is None else a[:-1] for a in arrays)
        assert tokens is not None
        assert loss_mask is not None
        shorter = replace(
            segment, tokens=tokens, loss_mask=loss_mask, logprobs=logprobs, versions=versions
        )
        conversation = replace(conversation, segments=(shorter,))
    assert is_equal(merged, conversation)


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(max_size=6), min_size=1, max_size=4),
    max_tokens=st.integers(1, 8),
)
def test_every_layout_trains_on_what_was_sampled_and_on_nothing_else(
    texts: list[str], max_tokens: int
) -> None:
    row = {"rewards": [0.0] * len(texts), "replies": ["q"] * len(texts)}
    sampled = [[*char(text), END][:max_tokens] for text in texts]
    for agent in (STEPS, MERGED, MESSAGE, Agent()):
        trajectory = play(texts, row, agent=agent, sampling=Sampling(max_tokens=max_tokens))
        wanted = list(sampled)
        if agent is MESSAGE:  # which goes on without the end tokens of all turns but the last
            wanted[:-1] = [[t for t in one if t != END] for one in sampled[:-1]]
        for turn, tokens in zip(trajectory.turns, wanted, strict=True):
            segment = trajectory.segments[turn.segment]
            assert segment.tokens[turn.start : turn.stop].tolist() == tokens
            assert segment.loss_mask[turn.start : turn.stop].all()
        trained = sum(int(segment.loss_mask.sum()) for segment in trajectory.segments)
        assert trained == sum(map(len, wanted)) == trajectory.num_completion_tokens


# --- which layout -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rows_of"),
    [
        ({}, 1),
        ({"use_conversation_multi_turn": False}, 1),
        ({"step_wise_trajectories": True}, 2),
        ({"step_wise_trajectories": True, "merge_stepwise_output": True}, 1),
    ],
)
def test_the_config_decides_about_the_layout(changes: dict[str, bool], rows_of: int) -> None:
    agent = Agent(layout(GeneratorConfig(**changes)))  # type: ignore[arg-type]
    trajectory = play(["abc", "d"], {"rewards": [0.0, 1.0], "replies": ["q"]}, agent=agent)

    assert len(trajectory.segments) == rows_of
    is_message = changes.get("use_conversation_multi_turn") is False
    assert (END in rows(trajectory)[-1][4:-1]) is not is_message


@pytest.mark.parametrize("make", [ConversationRow, MessageRow, StepRows])
def test_log_probs_that_nobody_wants_are_not_kept(make: type[ConversationRow]) -> None:
    agent = Agent(make, logprobs={"train": False, "eval": True})
    row = {"rewards": [0.0, 1.0], "replies": ["q"]}
    without = play(["abc", "d"], row, agent=agent)
    kept = play(["abc", "d"], row, agent=agent, phase="eval")

    assert all(s.logprobs is None and s.versions is None for s in without.segments)
    assert all(s.logprobs is not None for s in kept.segments)
    assert rows(without) == rows(kept)
    assert masks(without) == masks(kept)
