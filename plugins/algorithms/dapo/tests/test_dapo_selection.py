"""Dynamic sampling: which groups stay, and which stand in for others."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_dapo import filter as filtering
from skyrl_dapo import replace as replacing
from skyrl_dapo.filter import keep_uneven
from skyrl_dapo.replace import replace_even
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.protocols import Select
from skyrl_kernel.records import (
    EQUAL_REWARDS,
    Failure,
    Group,
    Prompt,
    Reward,
    Segment,
    Selection,
    StopReason,
    Trajectory,
)

PROMPT = Prompt(uid="p", messages=(), env_class="e")
FAILURE = Failure(step=1, uid="p", sample=9, kind="task", plugin=None, message="")

keep: Select = partial(keep_uneven, tolerance=1e-6)
stand_in: Select = partial(replace_even, tolerance=1e-6, least=0.3)


def trajectory(*turns: float, trained: bool = True, penalty: float = 0.0) -> Trajectory:
    segment = Segment(
        tokens=np.zeros(2, np.int32), num_prompt_tokens=1, loss_mask=np.array([False, trained])
    )
    return Trajectory(
        prompt=PROMPT,
        sample=0,
        segments=(segment,),
        turns=(),
        stop_reason=StopReason.STOP,
        reward=Reward(
            turns=(*turns[:-1], turns[-1] + penalty),
            components={"env": sum(turns), "overlong_penalty": penalty},
        ),
    )


def group(*trajectories: Trajectory, lost: int = 0) -> Group:
    return Group(index=0, prompt=PROMPT, trajectories=trajectories, failures=(FAILURE,) * lost)


def of(*rewards: float) -> Group:
    return group(*[trajectory(reward) for reward in rewards])


def decided(select: Select, *groups: Group, seed: int = 0) -> Selection:
    return select(groups, len(groups), np.random.default_rng(seed))


GOOD, FLAT = of(1, 2), of(3, 3)

# --- what teaches nothing -------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (of(1, 2), ""),
        (of(3, 3), EQUAL_REWARDS),
        (of(0.6667, 0.66670001), EQUAL_REWARDS),  # by less than 1e-6: rounding
        (of(5), ""),  # n_samples_per_prompt=1: nothing to compare, as in SkyRL
        (group(trajectory(1), lost=1), "all trajectories but one lost: nothing to compare it with"),
        (group(lost=2), "all trajectories lost"),
        (group(trajectory(1), trajectory(1), lost=1), EQUAL_REWARDS),
        # turns are summed first: 3 and 12, 1 and 1
        (group(trajectory(1, 2), trajectory(3, 4, 5)), ""),
        (group(trajectory(0, 1), trajectory(1, 0)), EQUAL_REWARDS),
        # what was cut off is not trained on, but the others are compared with it
        (group(trajectory(1), trajectory(0, trained=False)), ""),
        (group(trajectory(1, trained=False), trajectory(0, trained=False)), "no token to train on"),
        # the punishment of length is no difference: all are right
        (group(trajectory(1), trajectory(1, penalty=-0.5)), EQUAL_REWARDS),
        (group(trajectory(1), trajectory(0.5, penalty=0.5)), ""),
    ],
)
def test_why_a_group_is_left_out(candidate: Group, why: str) -> None:
    for select in (keep, stand_in):
        selection = decided(select, candidate)
        assert selection.verdicts == (("drop",) if why else ("keep",))
        assert selection.reasons == (why,)


@pytest.mark.parametrize(
    ("module", "name"), [(filtering, "filter"), (replacing, "replace")], ids=["filter", "replace"]
)
def test_each_answers_to_its_own_name_with_its_settings(module, name) -> None:  # type: ignore[no-untyped-def]
    settings = {AlgorithmConfig: AlgorithmConfig(zero_variance_filter_tol=0.5)}
    assert module.select("keep_all", settings) is None
    selection = decided(module.select(name, settings), of(1, 1.4), of(1, 1.5), of(1, 2))
    assert selection.verdicts == ("drop", "drop", "keep")  # the tolerance itself counts as equal


# --- replacement ------------------------------------------------------------------------


def test_a_flat_group_s_place_goes_to_a_good_one() -> None:
    selection = decided(stand_in, of(1, 2), of(1, 1), of(3, 4))
    assert selection.verdicts == ("keep", "drop", "keep")
    assert set(selection.stand_ins) == {1}
    assert selection.stand_ins[1] in {0, 2}


def test_no_good_group_stands_in_twice_while_there_are_others() -> None:
    for seed in range(20):
        selection = decided(stand_in, GOOD, FLAT, GOOD, FLAT, GOOD, seed=seed)
        assert len(set(selection.stand_ins.values())) == 2


def test_a_few_good_groups_stand_in_several_times() -> None:
    selection = decided(stand_in, GOOD, FLAT, FLAT)  # a third is more than 0.3
    assert selection.stand_ins == {1: 0, 2: 0}


def test_where_too_few_are_good_they_are_kept_and_others_generated() -> None:
    """SkyRL throws the good ones away too, and generates a whole batch."""
    selection = decided(stand_in, GOOD, *[FLAT] * 3)  # a quarter
    assert selection.verdicts == ("keep", "drop", "drop", "drop")
    assert not selection.stand_ins


def test_where_nothing_is_good_nothing_stands_in() -> None:
    always = partial(replace_even, tolerance=1e-6, least=0.0)
    assert not decided(always, FLAT, FLAT).stand_ins


def test_the_choice_is_seeded() -> None:
    groups = [GOOD, FLAT] * 8
    chosen = [decided(stand_in, *groups, seed=seed).stand_ins for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


@given(st.lists(st.booleans(), max_size=12), st.floats(0, 1), st.integers(0, 9))
def test_every_place_is_filled_or_left_to_be_generated(
    good: Sequence[bool], least: float, seed: int
) -> None:
    select = partial(replace_even, tolerance=1e-6, least=least)
    selection = decided(select, *[GOOD if one else FLAT for one in good], seed=seed)
    bad = {place for place, one in enumerate(good) if not one}
    assert set(selection.stand_ins) == (bad if sum(good) > least * len(good) else set())
    assert all(good[other] for other in selection.stand_ins.values())
