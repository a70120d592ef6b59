"""What a row's columns become, which side each trajectory is, and what held-out pairs say."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyrl_dpo.config import DpoConfig
from skyrl_dpo.evaluation import preferences
from skyrl_dpo.pairs import measure, pair_rows, prompt_of, sides
from skyrl_dpo.plugin import prompt_tokens, read_side
from skyrl_kernel.batch import credit
from skyrl_kernel.errors import ConfigError, DataError, FailureKind, TrajectoryError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.prepared import load_data
from skyrl_kernel.protocols import Advantage, RolloutContext
from skyrl_kernel.records import (
    Message,
    Prompt,
    Sampling,
    Scored,
    Scores,
    Segment,
    StopReason,
    Trajectory,
)
from skyrl_kernel.testing.byte_tokenizer import ByteTokenizer
from skyrl_kernel.testing.scripted import CharTokenizer


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


USER = [said("user", "6*7")]
RIGHT, WRONG = [said("assistant", "42")], [said("assistant", "48")]


def row(prompt: Sequence[Message] = (), **extras: object) -> Prompt:
    return Prompt(uid="0:3", messages=tuple(prompt), env_class="none", extras=extras)


def texts(prompt: Prompt) -> list[tuple[str, str]]:
    """Of each side the whole row, and what of it is learned."""
    found = []
    for (segment,) in pair_rows(prompt, ByteTokenizer()):
        trained = segment.tokens[segment.loss_mask]
        found.append((ByteTokenizer().decode(segment.tokens), ByteTokenizer().decode(trained)))
    return found


# --- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        row(USER, chosen="42", rejected="48"),
        row(USER, chosen=RIGHT, rejected=WRONG),
        row(USER, chosen=[*USER, *RIGHT], rejected=[*USER, *WRONG]),
        row(chosen=[*USER, *RIGHT], rejected=[*USER, *WRONG]),
        row(USER, chosen="42", rejected=[*USER, *WRONG], answer="42"),
    ],
)
def test_a_pair_is_two_answers_to_one_prompt_however_it_is_written(prompt: Prompt) -> None:
    assert texts(prompt) == [
        ("<user\n6*7><assistant\n42>", "42>"),
        ("<user\n6*7><assistant\n48>", "48>"),
    ]
    assert list(prompt_of(prompt)) == USER
    assert prompt_tokens(prompt, ByteTokenizer()) == len("<user\n6*7><assistant\n")


def test_every_answer_behind_what_both_share_is_learned() -> None:
    shared = [*USER, said("assistant", "hm"), said("user", "so?")]
    more = [said("user", "sure?"), said("assistant", "yes")]
    (_, chosen), (_, rejected) = texts(
        row(chosen=[*shared, *RIGHT, *more], rejected=[*shared, *WRONG])
    )
    assert (chosen, rejected) == ("42>yes>", "48>")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (row(), "needs the columns 'chosen' and 'rejected'.* the row has: none"),
        (row(USER, chosen="42", response="x"), "the row has: chosen, prompt, response"),
        (row(USER, chosen="42", rejected=None), "the row has: chosen, prompt"),
        (row(USER, chosen="42", rejected=48), "column 'rejected': found int 48"),
        (row(USER, chosen="42", rejected="42"), "hold the same"),
        (row(chosen="42", rejected="48"), "nothing that the answers answer to"),
        (row(chosen=[*USER, *RIGHT], rejected=USER), "column 'rejected' has no answer"),
    ],
)
def test_a_row_without_a_pair_says_what_it_lacks(prompt: Prompt, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pair_rows(prompt, ByteTokenizer())


def context(sample: int) -> RolloutContext:
    nobody: Any = None
    return RolloutContext(
        phase="train",
        sample=sample,
        seed=0,
        sampling=Sampling(),
        engine=nobody,
        tokenizer=ByteTokenizer(),
        host_env=nobody,
        max_prompt_tokens=100,
        max_input_tokens=100,
        max_turns=None,
    )


def test_sample_0_is_the_preferred_answer() -> None:
    prompt = row(USER, chosen="42", rejected="48")
    read = [asyncio.run(read_side(prompt, context(sample))) for sample in (0, 1)]
    assert [ByteTokenizer().decode(one.segments[0].tokens[-3:-1]) for one in read] == ["42", "48"]
    assert [one.id for one in read] == ["0:3/0", "0:3/1"]
    assert all(one.turns == () and one.segments[0].logprobs is None for one in read)
    with pytest.raises(TrajectoryError, match=r"row 0:3: .*'chosen'") as caught:
        asyncio.run(read_side(row(USER), context(0)))
    assert caught.value.kind is FailureKind.TASK


# --- before a run ---------------------------------------------------------------------------------


def load(tmp_path: Path, *rows: dict[str, Any]) -> Any:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    words = [
        f"data.train_data={json.dumps([str(file)])}",
        f"data.val_data={json.dumps([str(file)])}",
    ]
    return load_data(make_plan(["dpo"], [], words), CharTokenizer())


def test_a_row_without_a_pair_is_found_before_the_run(tmp_path: Path) -> None:
    good = {"prompt": USER, "chosen": "42", "rejected": "48"}
    data = load(tmp_path, good, {"chosen": [*USER, *RIGHT], "rejected": [*USER, *WRONG]})
    assert (len(data.train), data.notes) == (2, ())
    with pytest.raises(DataError, match=r"^data.train_data: .*row 1 \(from 0\): preference"):
        load(tmp_path, good, {"prompt": USER, "response": "42"})


def test_the_loss_is_refused_where_an_engine_samples() -> None:
    with pytest.raises(ConfigError, match=r"generator\.rollout=agent makes none; use --plugin dpo"):
        make_plan(["demo"], [], ["trainer.algorithm.policy_loss_type=dpo"])


@pytest.mark.parametrize("key", ["n_samples_per_prompt", "eval_n_samples_per_prompt"])
def test_another_number_of_samples_than_two_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"generator\.{key}=3.*set generator\.{key}=2"):
        make_plan(["dpo"], [], [f"generator.{key}=3"])


# --- sides ----------------------------------------------------------------------------------------


def scored(sample: int, log_ratios: Sequence[float], *, uid: str = "0:0") -> Scored:
    """A side whose answer became likelier by these nats per token, after a prompt of one."""
    mask = np.array([False, *(True for _ in log_ratios)])
    reference = np.full(len(mask), -1.0, dtype=np.float32)
    policy = reference + np.array([99.0, *log_ratios], dtype=np.float32)
    return Scored(
        trajectory=Trajectory(
            prompt=Prompt(uid=uid, messages=(), env_class="none"),
            sample=sample,
            segments=(
                Segment(
                    tokens=np.arange(len(mask), dtype=np.int32), num_prompt_tokens=1, loss_mask=mask
                ),
            ),
            turns=(),
            stop_reason=StopReason.STOP,
        ),
        scores=(Scores(old_logprobs=policy, ref_logprobs=reference),),
    )


def test_the_sign_of_the_advantage_is_the_side() -> None:
    ((chosen, rejected),) = sides([[scored(0, [1.0, 1.0]), scored(1, [1.0])]])
    assert chosen[0].advantages.tolist() == [1, 1, 1]
    assert rejected[0].advantages.tolist() == [-1, -1]
    assert rejected[0].loss_mask.tolist() == [False, True]
    ((first, second),) = sides([[scored(1, [1.0]), scored(0, [1.0, 1.0])]])
    assert (first[0].advantages[0], second[0].advantages[0]) == (-1, 1)


def test_a_pair_without_one_side_is_not_trained_on_and_counted() -> None:
    groups = [
        [scored(0, [1.0]), scored(1, [1.0])],
        [scored(1, [1.0])],  # the preferred one was lost
        [scored(0, [1.0]), scored(1, [])],  # the other one has nothing to learn
        [],
    ]
    credited = credit(Advantage(fn=sides, measure=measure), groups, masked=())
    masks = [[bool(rows[0].loss_mask.any()) for _, rows in group] for group in credited]
    assert masks == [[True, True], [False], [False, False], []]
    assert measure(credited) == {"loss/incomplete_pairs": 3.0}


# --- held-out pairs --------------------------------------------------------------------------------


def test_held_out_pairs_are_measured_as_in_training() -> None:
    pairs = [
        scored(0, [1.5, 0.5], uid="0:0"),  # reward 0.2
        scored(1, [-1.0], uid="0:1"),
        scored(1, [-1.0], uid="0:0"),  # −0.1
        scored(0, [-2.0], uid="0:1"),  # −0.2 against −0.1
        scored(0, [7.0], uid="0:2"),  # its other side is missing
    ]
    found = preferences(pairs, config=DpoConfig())
    # margins 0.3 and −0.1; −ln σ(0.3) = 0.554355, −ln σ(−0.1) = 0.744397
    assert found == {
        "accuracy": 0.5,
        "reward_margin": pytest.approx(0.1, abs=1e-6),
        "chosen_reward": pytest.approx(0.0, abs=1e-6),
        "rejected_reward": pytest.approx(-0.1, abs=1e-6),
        "loss": pytest.approx((0.554355 + 0.744397) / 2, abs=1e-6),
        "num_pairs": 2.0,
    }
    assert preferences(pairs[-1:], config=DpoConfig()) == {}
    # as means over tokens the margins are 1 + 1 and −2 + 1, the rest is as it was
    by_mean = preferences(pairs, config=DpoConfig(loss_type="ipo_mean", beta=0.5))
    assert by_mean["loss"] == pytest.approx(((2 - 1) ** 2 + (-1 - 1) ** 2) / 2)
    assert by_mean["reward_margin"] == pytest.approx(0.5 * (3 - 1) / 2)


def test_before_training_nothing_is_preferred() -> None:
    found = preferences([scored(0, [0.0]), scored(1, [0.0])], config=DpoConfig())
    assert found["accuracy"] == 0
    assert found["loss"] == pytest.approx(math.log(2))
