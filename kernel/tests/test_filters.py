"""Switches that take trajectories out of training, or their rewards: as wrappers, and in a run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_kernel.cli.show import describe_plan
from skyrl_kernel.defaults import (
    env_reward,
    keep_all,
    overlong_filtering,
    zero_reward_on_non_stop,
    zero_variance_filter,
)
from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.plan import make_plan
from skyrl_kernel.records import (
    Failure,
    Group,
    Prompt,
    Reward,
    Sampling,
    Segment,
    Selection,
    StopReason,
    Trajectory,
    Turn,
)
from skyrl_kernel.run import RunFolder
from skyrl_kernel.testing.scripted import Script, installed, perform, read_metrics, run_scripted
from skyrl_kernel.testing.scripted.episode import Says, play

PROMPT = Prompt(uid="p", messages=(), env_class="e")


def trajectory(
    *turns: float, stop_reason: StopReason = StopReason.STOP, trained: bool = True
) -> Trajectory:
    segment = Segment(
        tokens=np.array([1, 2], dtype=np.int32),
        num_prompt_tokens=1,
        loss_mask=np.array([False, trained]),
    )
    return Trajectory(
        prompt=PROMPT,
        sample=0,
        segments=(segment,),
        turns=tuple(Turn(segment=0, start=1, stop=2, reward=r, action="") for r in turns),
        stop_reason=stop_reason,
        reward=Reward(turns=turns, components={"env": sum(turns)}),
    )


def group(*trajectories: Trajectory, index: int = 0, lost: int = 0) -> Group:
    failure = Failure(step=1, uid="p", sample=9, kind="task", plugin=None, message="")
    return Group(index=index, prompt=PROMPT, trajectories=trajectories, failures=(failure,) * lost)


def verdicts(*groups: Group, tolerance: float = 1e-6) -> Selection:
    decide = zero_variance_filter.filtered(keep_all.keep_all, tolerance)
    return decide(groups, len(groups), np.random.default_rng(0))


# --- overlong filtering -----------------------------------------------------------------


@pytest.mark.parametrize(("max_tokens", "trained"), [(5, [0] * 9), (20, [0] * 4 + [1] * 10)])
def test_what_was_cut_off_is_not_trained_on(max_tokens: int, trained: list[int]) -> None:
    # SkyRL: ten tokens, cut to five: five zeros; whole: ones
    agent = overlong_filtering.filtered(Agent())
    found = play(["abcdefghi"], agent=agent, sampling=Sampling(max_tokens=max_tokens))

    assert found.segments[0].loss_mask.astype(int).tolist() == trained
    assert found.segments[0].versions is not None
    assert (found.segments[0].versions >= 0).sum() == min(max_tokens, 10)  # still the truth
    assert [(turn.start, turn.action) for turn in found.turns] == [(4, "abcdefghi"[:max_tokens])]


@pytest.mark.parametrize("max_input_tokens", [8, 12])
def test_all_turns_of_an_episode_that_grew_too_long_are_masked(max_input_tokens: int) -> None:
    row = {"rewards": [0.0] * 3, "replies": ["q"] * 3}
    texts = ["a"] * 3  # 4 + 2 + 4 + 2 + 4 + 2
    found = play(
        texts,
        row,
        agent=overlong_filtering.filtered(Agent()),
        max_input_tokens=max_input_tokens,
    )
    assert found.stop_reason is StopReason.LENGTH
    assert not any(segment.loss_mask.any() for segment in found.segments)


def test_other_endings_than_stop_are_filtered_too() -> None:
    class Aborts(Says):
        async def generate(self, requests: Sequence[Any]) -> list[Any]:
            (completion,) = await super().generate(requests)
            return [replace(completion, finish_reason="abort")]

    found = play([], engine=Aborts(["abc"]), agent=overlong_filtering.filtered(Agent()))
    assert found.stop_reason is StopReason.ABORT
    assert not found.segments[0].loss_mask.any()


# --- zero reward ------------------------------------------------------------------------


def test_what_did_not_stop_by_itself_earns_nothing_and_the_components_say_so() -> None:
    judge = zero_reward_on_non_stop.zeroed(env_reward.env_reward)
    ends = list(StopReason)
    rewards = judge([trajectory(0.25, 1.0, stop_reason=end) for end in ends])

    for end, reward in zip(ends, rewards, strict=True):
        if end is StopReason.STOP:
            assert reward == Reward(turns=(0.25, 1.0), components={"env": 1.25})
        else:
            assert reward == Reward(turns=(0.0, 0.0), components={"env": 1.25, "non_stop": -1.25})
        assert sum(reward.components.values()) == reward.total
    assert judge([]) == []


# --- zero variance ----------------------------------------------------------------------


def test_groups_whose_rewards_are_all_equal_are_masked_with_the_reason() -> None:
    # SkyRL: rewards [1, 2, 3, 3, 5] of prompts u1 u1 u2 u2 u3 keep 0, 1 and 4
    selection = verdicts(
        group(trajectory(1.0), trajectory(2.0)),
        group(trajectory(3.0), trajectory(3.0), index=1),
        group(trajectory(5.0), index=2),
    )
    assert selection.verdicts == ("keep", "mask", "keep")
    assert selection.reasons == ("", "all rewards equal", "")


@pytest.mark.parametrize(("tolerance", "verdict"), [(1e-6, "mask"), (0.0, "keep")])
def test_the_tolerance_is_the_largest_spread_that_counts_as_equal(
    tolerance: float, verdict: str
) -> None:  # SkyRL
    one = group(trajectory(0.6667), trajectory(0.66670001))
    assert verdicts(one, tolerance=tolerance).verdicts == (verdict,)


def test_turn_rewards_are_summed_first() -> None:  # SkyRL: [0, 1] and [1, 0] are equal
    one = group(trajectory(0.0, 1.0), trajectory(1.0, 0.0))
    assert verdicts(one).verdicts == ("mask",)


def test_trajectories_that_train_on_nothing_are_not_compared() -> None:  # SkyRL
    equal = group(trajectory(1.0), trajectory(1.0), trajectory(0.0, trained=False))
    alone = group(trajectory(1.0), trajectory(1.0, trained=False), index=1)
    assert verdicts(equal, alone).verdicts == ("mask", "keep")


def test_what_the_selection_inside_refused_stays_refused() -> None:
    selection = verdicts(group(lost=2), group(trajectory(1.0), lost=1, index=1))
    assert selection.verdicts == ("drop", "mask")
    assert selection.reasons[1].startswith("all trajectories but one lost")

    def drop_all(candidates: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        return Selection(verdicts=("drop",) * len(candidates), reasons=("no",) * len(candidates))

    equal = group(trajectory(1.0), trajectory(1.0))
    decide = zero_variance_filter.filtered(drop_all, 1e-6)
    assert decide([equal], 1, np.random.default_rng(0)) == drop_all([equal], 1, None)  # type: ignore[arg-type]


@given(
    rewards=st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    shift=st.integers(-8, 8),
)
def test_shifting_all_rewards_of_a_group_changes_no_verdict(
    rewards: list[float], shift: int
) -> None:
    tolerance = 1e-3
    spread = max(rewards) - min(rewards)
    if abs(spread - tolerance) < 1e-9:  # rounding decides
        return
    plain = verdicts(group(*map(trajectory, rewards)), tolerance=tolerance)
    shifted = verdicts(group(*(trajectory(r + shift) for r in rewards)), tolerance=tolerance)
    assert plain == shifted


# --- in a run ---------------------------------------------------------------------------

ALL = (
    "trainer.algorithm.zero_variance_filter=true",
    "generator.apply_overlong_filtering=true",
    "generator.zero_reward_on_non_stop=true",
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site"):
        yield tmp_path


def test_a_dry_run_names_each_filter_at_its_stage(site: Path) -> None:
    with perform(Script()):
        text = describe_plan(make_plan(["scripted"], overrides=ALL))
        plain = describe_plan(make_plan(["scripted"]))
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert "plugin/agent < wrapped by plugin/overlong_filtering" in lines["generate"]
    assert "plugin/env_reward < wrapped by plugin/zero_reward_on_non_stop" in lines["reward"]
    assert "plugin/keep_all < wrapped by plugin/zero_variance_filter" in lines["select"]
    assert "wrapped by" not in plain


def test_a_run_trains_on_no_group_without_differences(site: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}"}], "answer": answer}
        for i, answer in enumerate(["never", "0", "never", "0"])
    ]
    data = site / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = Script(reply=lambda ask: str(ask.number % 2))  # of two samples one says 0
    result = run_scripted(
        site,
        ALL[0],
        f"data.train_data=['{data}']",
        "data.val_data=[]",
        "data.shuffle=false",
        script=script,
    )
    lines = read_metrics(result)
    assert [line["generate/groups_masked"] for line in lines if line["step"]] == [1, 1]
    assert [line["reward/num_zero_variance_filtered"] for line in lines] == [2, 2]
    assert script.trainer is not None
    for batch in script.trainer.batches:
        trained = {one.group: bool(one.loss_mask.any()) for one in batch}
        assert sorted(trained.values()) == [False, True]
        # the masked group counts in no denominator: 2 trajectories × 2 tokens
        weights = [one.loss_weights["policy"][one.loss_mask] for one in batch]
        assert np.concatenate(weights) == pytest.approx([0.25] * 4)


def test_ahead_of_training_groups_without_differences_are_replaced_where_a_full_batch_is_asked_for(
    site: Path,
) -> None:
    # Every other prompt has no differences; 2 prompts a step of 8, so 4 steps take two epochs.
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}"}], "answer": answer}
        for i, answer in enumerate(["never", "0"] * 4)
    ]
    data = site / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [ALL[0], f"data.train_data=['{data}']", "data.val_data=[]", "data.shuffle=false"]
    words += ["trainer.fully_async.enabled=true", "trainer.fully_async.max_staleness_steps=1"]
    full = "trainer.fully_async.sample_full_batch=true"
    masked, replaced = (
        read_metrics(
            run_scripted(
                site / name, *words, *more, script=Script(reply=lambda ask: str(ask.number % 2))
            )
        )
        for name, more in (("masked", []), ("replaced", [full]))
    )
    for line in masked:
        assert (line["generate/groups_masked"], line["generate/groups_dropped"]) == (1, 0)
        assert line["loss/trained_tokens"] == 4
    for line in replaced:
        assert (line["generate/groups_masked"], line["generate/groups_dropped"]) == (0, 2)
        assert line["reward/num_zero_variance_filtered"] == 4
        assert line["reward_dropped/zero_variance_groups_frac"] == 1
        assert line["generate_dropped/batch_num_seq"] == 4
        assert line["loss/trained_tokens"] == 8
        assert line["async/staleness_max"] <= 1


def test_a_run_trains_on_nothing_that_was_cut_off_and_gives_it_no_reward(site: Path) -> None:
    script = Script(reply=lambda ask: "0" if ask.number % 2 else "0" * 99)
    result = run_scripted(site, *ALL[1:], "data.val_data=[]", script=script)

    rows = RunFolder(result.folder).read_trajectories(1)
    assert {row["stop_reason"] for row in rows} == {"stop", "length"}
    for row in rows:
        is_whole = row["stop_reason"] == "stop"
        (segment,) = row["segments"]
        assert any(segment["loss_mask"]) is is_whole
        if not is_whole:
            assert row["reward"] == 0
    right = [r for r in rows if dict(r["reward_components"])["env"] and r["stop_reason"] != "stop"]
    assert all(dict(row["reward_components"])["non_stop"] == -1 for row in right)
    assert right
