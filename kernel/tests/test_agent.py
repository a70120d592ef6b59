"""The agent loop, token by token.

Users train on what is locked here: do not "fix" a test without an explicit decision.
Cases marked SkyRL have the numbers that its own tests expect of conversation mode.

CharTokenizer: a message is [role, one id per character, END]; ids of characters are
code point + 8, roles are 1-4, END is 0. A prompt "x" is [USER, x, END, ASSISTANT].
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.errors import FailureKind, ModelError, TrajectoryError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    IntArray,
    Message,
    Sampling,
    StopReason,
    Trajectory,
)
from skyrl_kernel.testing.scripted import CharTokenizer, ScriptedEnv
from skyrl_kernel.testing.scripted.episode import Says, play
from skyrl_kernel.testing.scripted.tokenizer import END, ROLES

USER, ASSISTANT = ROLES["user"], ROLES["assistant"]


def char(text: str) -> list[int]:
    return [ord(one) + 8 for one in text]


def trained(trajectory: Trajectory) -> list[int]:
    (segment,) = trajectory.segments
    return segment.tokens[segment.loss_mask].tolist()


def test_a_single_turn_is_the_prompt_and_the_completion_as_sampled() -> None:  # SkyRL
    trajectory = play(["abc"], {"rewards": [0.5]})

    (segment,) = trajectory.segments
    assert segment.tokens.tolist() == [USER, *char("x"), END, ASSISTANT, *char("abc"), END]
    assert segment.num_prompt_tokens == 4
    assert segment.loss_mask.tolist() == [False] * 4 + [True] * 4
    assert segment.versions is not None
    assert segment.logprobs is not None
    assert segment.versions.tolist() == [-1] * 4 + [10, 11, 12, 13]
    assert segment.logprobs[:4].tolist() == [0] * 4
    assert segment.logprobs[4:] == pytest.approx([-1, -4 / 3, -5 / 3, -2])
    assert trajectory.stop_reason is StopReason.STOP
    assert (trajectory.id, trajectory.version, trajectory.num_completion_tokens) == ("7/3", 10, 4)


def test_two_turns_carry_their_rewards_at_the_end_of_each_completion() -> None:  # SkyRL
    trajectory = play(["abc", "def"], {"rewards": [0.5, 0.25], "replies": ["q"]})

    (segment,) = trajectory.segments
    # prompt 4, completion 4, reply [USER q END ASSISTANT] 4, completion 4
    assert segment.tokens[8:12].tolist() == [USER, *char("q"), END, ASSISTANT]
    assert segment.loss_mask.tolist() == ([False] * 4 + [True] * 4) * 2
    assert [(t.start, t.stop, t.reward, t.action) for t in trajectory.turns] == [
        (4, 8, 0.5, "abc"),
        (12, 16, 0.25, "def"),
    ]
    assert segment.versions is not None
    assert segment.versions[8:12].tolist() == [-1] * 4
    assert segment.versions[12:].tolist() == [20, 21, 22, 23]
    assert [turn.metadata["turn"] for turn in trajectory.turns] == [1, 2]
    assert trajectory.env_metrics == {"exact_match": 0.0, "turns": 2.0}


def test_the_engine_is_given_every_token_so_far_and_another_seed_each_turn() -> None:
    engine = Says(["a", "b"])
    trajectory = play([], {"rewards": [0, 0], "replies": ["q"]}, engine=engine)

    first, second = engine.requests
    tokens = trajectory.segments[0].tokens.tolist()
    assert first.tokens.tolist() == tokens[:4]
    assert second.tokens.tolist() == tokens[:10]
    assert first.seed != second.seed


@pytest.mark.parametrize(("completion_tokens", "steps"), [(20, 1), (2, 3)])
def test_a_row_beyond_the_input_limit_ends_without_its_last_observation(
    completion_tokens: int, steps: int
) -> None:  # SkyRL: limit 20, prompt 4, observation 4
    text = "a" * (completion_tokens - 1)
    trajectory = play([text] * 9, {"rewards": [1.0] * 9, "replies": ["q"] * 9}, max_input_tokens=20)

    assert trajectory.stop_reason is StopReason.LENGTH
    assert len(trajectory.turns) == steps
    # 4 + 20 = 24, and + 4 > 20 | 4 + (2 + 4) + (2 + 4) + 2 = 18, and + 4 > 20
    assert len(trajectory.segments[0].tokens) == {1: 24, 3: 18}[steps]
    assert trajectory.segments[0].loss_mask[-1]


def test_a_completion_that_is_cut_off_ends_its_trajectory_by_length_if_the_env_is_done() -> None:
    trajectory = play(["abcdef"], {"rewards": [1.0]}, sampling=Sampling(max_tokens=3))

    assert trajectory.stop_reason is StopReason.LENGTH
    assert trained(trajectory) == char("abc")


def test_a_cut_off_completion_gets_its_end_of_turn_token_untrained_before_the_reply() -> None:
    trajectory = play(
        ["abcdef", "x"], {"rewards": [0, 1], "replies": ["q"]}, sampling=Sampling(max_tokens=3)
    )

    (segment,) = trajectory.segments
    assert segment.tokens[4:].tolist() == [
        *char("abc"),
        *(END, USER, *char("q"), END, ASSISTANT),
        *char("x"),
        END,
    ]
    assert segment.loss_mask[4:].tolist() == [True] * 3 + [False] * 5 + [True] * 2
    assert [(turn.start, turn.stop) for turn in trajectory.turns] == [(4, 7), (12, 14)]


def test_a_postprocessed_action_replaces_the_completion_and_is_never_trained_on() -> None:
    row = {"rewards": [0.0, 1.0], "replies": ["q"], "postprocess": "12"}
    trajectory = play(["abc", "def"], row)

    (segment,) = trajectory.segments
    # it has no end-of-turn token of its own, so the reply begins with one
    assert segment.tokens[4:].tolist() == [
        *char("12"),
        *(END, USER, *char("q"), END, ASSISTANT),
        *char("12"),
    ]
    assert not segment.loss_mask.any()
    assert trajectory.version is None
    assert [turn.action for turn in trajectory.turns] == ["12", "12"]


def test_a_postprocessed_action_that_changes_nothing_leaves_the_completion_as_it_was_sampled() -> (
    None
):
    row = {"rewards": [0.0, 1.0], "replies": ["q"], "postprocess": "ab"}
    (segment,) = play(["ab", "abc"], row).segments

    assert segment.tokens[4:].tolist() == [
        *(*char("ab"), END, USER, *char("q"), END, ASSISTANT),
        *char("ab"),
    ]
    assert segment.loss_mask[4:].tolist() == [True] * 3 + [False] * 4 + [False] * 2


@pytest.mark.parametrize(("env_limit", "cap", "played"), [(3, 2, 2), (2, 3, 2), (1, 9, 1)])
def test_a_cap_on_turns_shortens_an_episode_and_never_lengthens_it(
    env_limit: int, cap: int, played: int
) -> None:
    trajectory = play(["a"] * 9, {"rewards": [0.0] * env_limit}, max_turns=cap)

    assert len(trajectory.turns) == played
    assert trajectory.stop_reason is StopReason.STOP  # the env knows the cap and ended it itself


def test_an_env_that_ignores_the_cap_is_ended_by_it() -> None:
    trajectory = play(
        ["a"] * 9, max_turns=2, make=lambda name, extras, cap: ScriptedEnv({"rewards": [0.0] * 9})
    )

    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.turns) == 2


def test_an_aborted_completion_ends_the_trajectory() -> None:
    class Aborts(Says):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            (completion,) = await super().generate(requests)
            return [
                replace(
                    completion,
                    tokens=completion.tokens[:1],
                    logprobs=completion.logprobs[:1],
                    versions=completion.versions[:1],
                    finish_reason="abort",
                )
            ]

    trajectory = play([], {"rewards": [0, 0]}, engine=Aborts(["abc"]))

    assert trajectory.stop_reason is StopReason.ABORT
    assert trained(trajectory) == char("a")


def test_a_prompt_that_the_env_made_too_long_costs_the_trajectory() -> None:
    closed = ScriptedEnv.closed
    with pytest.raises(
        TrajectoryError, match=r"made a prompt of 13 tokens; .*max_prompt_length is 12"
    ):
        play(["a"], content="0123456789", max_prompt_tokens=12)
    assert ScriptedEnv.closed == closed + 1


@pytest.mark.parametrize("method", ["step", "get_metrics", "close"])
def test_a_failing_env_is_closed_once(method: str) -> None:
    closed = ScriptedEnv.closed
    with pytest.raises(TrajectoryError, match=f"failed in {method}: RuntimeError") as caught:
        play(["a"], {"fault": f"{method} raise"})
    assert caught.value.kind is FailureKind.TASK
    assert ScriptedEnv.closed == closed + 1


def test_a_failing_engine_closes_the_env() -> None:
    class Fails(Says):
        async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
            raise ConnectionError("gone")

    closed = ScriptedEnv.closed
    with pytest.raises(ConnectionError):
        play([], engine=Fails([]))
    assert ScriptedEnv.closed == closed + 1


def test_a_template_that_rewrites_earlier_turns_is_refused_for_several_turns() -> None:
    class Forgets(CharTokenizer):
        """Drops the text of all assistant turns but the last, as thinking models do."""

        def encode_chat(
            self, messages: Sequence[Message], *, add_generation_prompt: bool
        ) -> IntArray:
            last = len(messages) - 1
            kept = [
                {**m, "content": ""} if m["role"] == "assistant" and i < last else m
                for i, m in enumerate(messages)
            ]
            return super().encode_chat(kept, add_generation_prompt=add_generation_prompt)

    assert play(["abc"], tokenizer=Forgets()).turns  # one turn needs no reply
    with pytest.raises(ModelError, match=r"rewrites earlier turns.*generator.max_turns=1"):
        play(["abc", "d"], {"rewards": [0, 0]}, tokenizer=Forgets())


def test_seconds_are_counted_by_kind() -> None:
    timings = play(["abc"]).timings
    assert set(timings) == {"llm", "env", "total"}
    assert timings["llm"] + timings["env"] <= timings["total"]


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(max_size=6), min_size=1, max_size=4),
    replies=st.lists(st.text(min_size=1, max_size=5), min_size=4, max_size=4),
    max_tokens=st.integers(1, 6),
)
def test_what_is_trained_on_is_what_was_sampled(
    texts: list[str], replies: list[str], max_tokens: int
) -> None:
    engine = Says(texts)
    row = {"rewards": [0.0] * len(texts), "replies": replies}
    trajectory = play([], row, engine=engine, sampling=Sampling(max_tokens=max_tokens))

    sampled = [[*char(text), END][:max_tokens] for text in texts]
    assert trained(trajectory) == [token for completion in sampled for token in completion]
    (segment,) = trajectory.segments
    assert segment.versions is not None
    assert ((segment.versions >= 0) == segment.loss_mask).all()
    for turn, completion in zip(trajectory.turns, sampled, strict=True):
        assert segment.tokens[turn.start : turn.stop].tolist() == completion
    # every completion continues a prefix of the row
    for turn, request in zip(trajectory.turns, engine.requests, strict=True):
        assert request.tokens.tolist() == segment.tokens[: turn.start].tolist()


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pytest.importorskip("transformers", reason="not checked: a Hugging Face chat template")
    from skyrl_tiny.tokenizer import save_tokenizer
    from skyrl_transformers.tokenizer import HuggingFaceTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return HuggingFaceTokenizer(folder)


def test_with_a_hugging_face_template_the_row_is_the_conversation(chatml: Tokenizer) -> None:
    texts, replies = ["12 and 3", "36"], ["Try again."]
    trajectory = play(
        texts, {"rewards": [0, 1], "replies": replies}, content="What is 12 × 3?", tokenizer=chatml
    )

    conversation: list[Message] = [
        {"role": "user", "content": "What is 12 × 3?"},
        {"role": "assistant", "content": texts[0]},
        {"role": "user", "content": replies[0]},
        {"role": "assistant", "content": texts[1]},
    ]
    whole = chatml.encode_chat(conversation, add_generation_prompt=False)
    newline = chatml.encode("\n")  # ChatML writes one after each message, the last one too
    assert trajectory.segments[0].tokens.tolist() == whole[: -len(newline)].tolist()
    (end,) = chatml.eos_token_ids
    sampled = [*chatml.encode(texts[0]), end, *chatml.encode(texts[1]), end]
    assert trained(trajectory) == sampled


def test_with_a_hugging_face_template_a_cut_off_turn_is_ended_untrained(chatml: Tokenizer) -> None:
    trajectory = play(
        ["0123456789", "1"],
        {"rewards": [0, 1], "replies": ["Shorter."]},
        tokenizer=chatml,
        sampling=Sampling(max_tokens=5),
    )

    conversation: list[Message] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "01234"},
        {"role": "user", "content": "Shorter."},
        {"role": "assistant", "content": "1"},
    ]
    whole = chatml.encode_chat(conversation, add_generation_prompt=False)
    assert trajectory.segments[0].tokens.tolist() == whole[: -len(chatml.encode("\n"))].tolist()
    (end,) = chatml.eos_token_ids
    assert trained(trajectory) == [*chatml.encode("01234"), *chatml.encode("1"), end]
