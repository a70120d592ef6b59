"""Runs whose episodes are laid out otherwise: rows of turns, joined rows, one message."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.plan import make_plan
from skyrl_kernel.plugins import discover
from skyrl_kernel.records import TrainingSample
from skyrl_kernel.run import RunFolder
from skyrl_kernel.slots import ALGORITHMS
from skyrl_kernel.testing.distributions import make_distribution
from skyrl_kernel.testing.scripted import Ask, Script, installed, run_scripted

ALONG_A_ROW = """
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage

@hookimpl
def advantage(name):
    return Advantage(fn=lambda groups: [], needs_one_row=True) if name == "along" else None
"""
STEPS = "generator.step_wise_trajectories=true"
JOINED = "generator.merge_stepwise_output=true"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site"):
        make_distribution(
            tmp_path / "site",
            "skyrl-along",
            modules={"skyrl_along": ALONG_A_ROW},
            entry_points={ALGORITHMS: {"along": "skyrl_along"}},
        )
        discover(refresh=True)
        yield tmp_path


def second_turn_decides(ask: Ask) -> str:
    return "" if "why" not in ask.text else f"{ask.seed % 2}!"


def play(
    folder: Path, name: str, *words: str, reply: Callable[[Ask], str] = second_turn_decides
) -> tuple[list[TrainingSample], list[dict[str, Any]]]:
    """The rows that the first step trained on, and its trajectories; two turns, 1 + 3 tokens."""
    data = folder / "rows.jsonl"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "max_turns": 2,
            "answer": "1!",
            "replies": ["why"],
        }
        for i in range(2)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    script = Script(reply=reply)
    result = run_scripted(
        folder,
        f"trainer.run_name={name}",
        f"data.train_data=['{data}']",
        "data.val_data=[]",
        "generator.n_samples_per_prompt=4",
        *words,
        script=script,
    )
    assert script.trainer is not None
    return script.trainer.batches[0], RunFolder(result.folder).read_trajectories(1)


def test_each_turn_is_a_row_and_all_rows_have_their_trajectory_s_advantage(site: Path) -> None:
    plain, _ = play(site, "plain")
    steps, trajectories = play(site, "steps", STEPS)

    assert [len(one["segments"]) for one in trajectories] == [2] * 8
    assert [turn["segment"] for turn in trajectories[0]["turns"]] == [0, 1]
    assert [one.trajectory for one in steps] == [i for i in range(8) for _ in range(2)]
    for place, whole in enumerate(plain):
        first, second = steps[2 * place : 2 * place + 2]
        assert second.tokens.tolist() == whole.tokens.tolist()  # this template only appends
        assert first.tokens.tolist() == whole.tokens[: len(first.tokens)].tolist()
        assert int(first.loss_mask.sum()) == 1
        assert int(second.loss_mask.sum()) == 3
        advantage = whole.advantages[whole.loss_mask]
        both = np.concatenate([one.advantages[one.loss_mask] for one in (first, second)])
        assert both.tolist() == advantage.tolist()
        # 8 trajectories × 4 tokens, in whatever number of rows
        assert whole.loss_weights["policy"][whole.loss_mask] == pytest.approx([1 / 32] * 4)
        assert second.loss_weights["policy"][second.loss_mask] == pytest.approx([1 / 32] * 3)


def test_joined_rows_train_exactly_as_a_conversation_does(site: Path) -> None:
    plain, _ = play(site, "plain")
    joined, trajectories = play(site, "joined", STEPS, JOINED)

    assert [len(one["segments"]) for one in trajectories] == [1] * 8
    for one, other in zip(plain, joined, strict=True):
        for name in ("tokens", "loss_mask", "advantages", "sampler_logprobs"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()
        assert one.loss_weights["policy"].tolist() == other.loss_weights["policy"].tolist()


def test_all_turns_in_one_message_have_no_end_token_between_them(site: Path) -> None:
    _, trajectories = play(site, "message", "generator.use_conversation_multi_turn=false")

    (segment,) = trajectories[0]["segments"]
    text = "".join(chr(token - 8) for token in segment["tokens"][8:-1])
    assert text in {"why0!", "why1!"}  # the first turn was nothing but an end token
    assert sum(segment["loss_mask"]) == 3


@pytest.mark.parametrize(("appends", "between"), [(True, [0, 2]), (False, [2])])
def test_a_stop_string_ends_turns_and_an_end_token_closes_them_if_wanted(
    site: Path, appends: bool, between: list[int]
) -> None:
    _, trajectories = play(
        site,
        f"stop{appends}",
        "generator.sampling_params.stop=['!']",
        f"generator.append_eos_token_after_stop_str_in_multi_turn={str(appends).lower()}",
        reply=lambda ask: f"{ask.seed % 2}!rest",
    )
    for one in trajectories:
        (segment,) = one["segments"]
        first = one["turns"][0]
        assert first["action"] in {"0!", "1!"}
        after = segment["tokens"][first["stop"] : first["stop"] + len(between)]
        if len(one["turns"]) == 2:
            assert after == between
        assert (segment["tokens"][-1] == 0) is appends
        assert sum(segment["loss_mask"]) == 2 * len(one["turns"])


def test_without_sampler_log_probs_the_trainer_computes_the_old_ones(site: Path) -> None:
    rows, trajectories = play(site, "none", "generator.sampling_params.logprobs=null")

    assert {segment["logprobs"] for one in trajectories for segment in one["segments"]} == {None}
    assert all(one.sampler_logprobs is None for one in rows)


def test_an_estimator_that_credits_along_one_row_refuses_rows_of_turns(site: Path) -> None:
    words = [STEPS, "trainer.algorithm.advantage_estimator=along"]
    with pytest.raises(CapabilityError, match=r"a token row of each turn.*'?along'?.*such as grpo"):
        make_plan(["scripted"], overrides=words)
    assert make_plan(["scripted"], overrides=words, training=False)
    assert make_plan(["scripted"], overrides=words[1:])
