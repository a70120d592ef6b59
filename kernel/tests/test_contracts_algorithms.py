"""Broken advantages and losses are refused by the contract suites, and by a run that would misread one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skyrl_kernel.batch import credit
from skyrl_kernel.errors import HookError
from skyrl_kernel.protocols import Advantage, Loss
from skyrl_kernel.records import TokenAdvantages
from skyrl_kernel.testing.contracts import AdvantageContract, LossContract
from skyrl_kernel.testing.groups import judged_group


def per_token(value: Callable[[Any, int, int], float]) -> Advantage:
    """An advantage from (group, place of the trajectory, number of the call)."""
    calls = [0]

    def fn(groups: Sequence[Any]) -> Any:
        calls[0] += 1
        return [
            [
                tuple(
                    TokenAdvantages(
                        advantages=np.full(len(s.tokens), value(group, i, calls[0]), np.float32),
                        loss_mask=s.loss_mask,
                    )
                    for s in one.trajectory.segments
                )
                for i, one in enumerate(group)
            ]
            for group in groups
        ]

    return Advantage(fn=fn)


def total(group: Any, place: int) -> float:
    return float(group[place].trajectory.reward.total)


@pytest.mark.parametrize(
    ("value", "test"),
    [
        (
            lambda group, i, call: float("nan"),
            AdvantageContract.test_every_segment_is_credited_with_finite_numbers_of_its_own_shape,
        ),
        (lambda group, i, call: call, AdvantageContract.test_equal_inputs_give_equal_advantages),
        (
            lambda group, i, call: i,
            AdvantageContract.test_the_order_within_a_group_and_of_groups_changes_nothing,
        ),
        (
            lambda group, i, call: -total(group, i),
            AdvantageContract.test_a_better_trajectory_is_not_credited_less,
        ),
        (
            lambda group, i, call: 1.0,
            AdvantageContract.test_a_better_trajectory_is_not_credited_less,
        ),
    ],
)
def test_a_broken_advantage_is_refused(value: Any, test: Callable[[Any], None]) -> None:
    advantage = per_token(value)

    class Contract(AdvantageContract):
        def advantage(self) -> Advantage:
            return advantage

    with pytest.raises((AssertionError, ArithmeticError)):
        test(Contract())


def outcome(groups: Sequence[Any]) -> Any:
    """Every trained token is credited with the total reward."""
    return [
        [
            tuple(
                TokenAdvantages(
                    advantages=np.where(s.loss_mask, np.float32(total(group, i)), np.float32(0)),
                    loss_mask=s.loss_mask,
                )
                for s in one.trajectory.segments
            )
            for i, one in enumerate(group)
        ]
        for group in groups
    ]


def changed(**fields: Callable[[Any], Any]) -> Any:
    """As `outcome`, with some fields of each entry made otherwise."""

    def fn(groups: Any) -> Any:
        return [
            [
                tuple(
                    replace(one, **{name: make(one) for name, make in fields.items()})
                    for one in rows
                )
                for rows in group
            ]
            for group in outcome(groups)
        ]

    return fn


def from_the_reference(groups: Any) -> Any:
    for group in groups:
        for one in group:
            for scores in one.scores:
                scores.ref_logprobs.sum()
    return outcome(groups)


class Baseline:
    """Running mean of all rewards, which one of the two ways to keep it forgets."""

    mean = 0.0
    forgets = False

    def fn(self, groups: Any) -> Any:
        rewards = [total(group, i) for group in groups for i in range(len(group))]
        before, self.mean = self.mean, (self.mean + sum(rewards)) / (1 + len(rewards))
        shift = np.float32(before)
        return changed(advantages=lambda one: one.advantages - one.loss_mask * shift)(groups)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.forgets else {"mean": self.mean}

    def load_state_dict(self, state: Any) -> None:
        self.mean = state.get("mean", 0.0)


class Forgetful(Baseline):
    forgets = True


class Arrays(Baseline):
    def state_dict(self) -> dict[str, Any]:
        return {"mean": np.array(self.mean)}


def remembering(made: type[Baseline]) -> Callable[[], Advantage]:
    def make() -> Advantage:
        part = made()
        return Advantage(fn=part.fn, state={"baseline": part})

    return make


TYPES = (
    AdvantageContract.test_what_is_not_trained_on_is_credited_with_nothing_and_types_are_the_kernels
)
KEPT = AdvantageContract.test_what_it_remembers_goes_through_a_checkpoint
MEASURED = AdvantageContract.test_what_it_measures_has_names_and_is_numbers
NAMED = AdvantageContract.test_it_needs_no_score_but_those_that_it_names


@pytest.mark.parametrize(
    ("make", "test"),
    [
        (lambda: per_token(lambda group, i, call: 1.0), TYPES),
        (lambda: Advantage(fn=changed(advantages=lambda one: one.advantages.astype(float))), TYPES),
        (lambda: Advantage(fn=changed(loss_mask=lambda one: one.loss_mask.astype(int))), TYPES),
        (lambda: Advantage(fn=changed(returns=lambda one: one.advantages.astype(float))), TYPES),
        (lambda: Advantage(fn=from_the_reference), NAMED),
        (lambda: Advantage(fn=outcome, measure=lambda groups: {"mine": 1.0}), MEASURED),
        (lambda: Advantage(fn=outcome, measure=lambda groups: {"a/b": 1 / len(groups)}), MEASURED),
        (remembering(Forgetful), KEPT),
        (remembering(Arrays), KEPT),
    ],
)
def test_what_an_advantage_brings_beside_its_numbers_is_checked(
    make: Callable[[], Advantage], test: Callable[[Any], None]
) -> None:
    class Contract(AdvantageContract):
        def advantage(self) -> Advantage:
            return make()

    with pytest.raises((AssertionError, HookError, TypeError, AttributeError, ZeroDivisionError)):
        test(Contract())


def test_an_advantage_that_keeps_all_of_it_passes() -> None:
    class Contract(AdvantageContract):
        def advantage(self) -> Advantage:
            return remembering(Baseline)()

    for test in (TYPES, NAMED, MEASURED, KEPT):
        test(Contract())


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"loss_mask": lambda one: one.loss_mask.astype(int)}, "a mask of int64 .* needed: bool"),
        ({"returns": lambda one: one.advantages[1:]}, r"returns of shape \(4,\) .* segment has"),
    ],
)
def test_a_run_refuses_columns_that_it_would_misread(fields: Any, told: str) -> None:
    with pytest.raises(HookError, match=told):
        credit(Advantage(fn=changed(**fields)), [judged_group([[1.0], [0.0]])], masked=())


def test_an_advantage_that_needs_one_row_is_given_no_others() -> None:
    def along_one_row(groups: Any) -> Any:
        for group in groups:
            for one in group:
                (_,) = one.trajectory.segments
        return per_token(lambda group, i, call: total(group, i)).fn(groups)

    class Contract(AdvantageContract):
        needs_one_row = True

        def advantage(self) -> Advantage:
            return Advantage(fn=along_one_row, needs_one_row=self.needs_one_row)

    Contract().test_every_segment_is_credited_with_finite_numbers_of_its_own_shape()
    Contract.needs_one_row = False
    with pytest.raises(ValueError, match="too many values"):
        Contract().test_every_segment_is_credited_with_finite_numbers_of_its_own_shape()


@pytest.mark.parametrize(
    ("term", "test"),
    [
        ("sum", LossContract.test_every_term_is_per_token_and_has_a_coefficient),
        ("exp", LossContract.test_terms_and_gradients_are_finite),
        ("mean", LossContract.test_atoms_do_not_see_each_other),
    ],
)
def test_a_broken_loss_is_refused(term: str, test: Callable[[Any], None]) -> None:
    torch = pytest.importorskip("torch", reason="not checked: losses need torch")
    from skyrl_kernel.torch import LossTerms

    terms = {
        "sum": lambda inputs: inputs.logprobs.sum(),
        "exp": lambda inputs: torch.exp(10 * (inputs.logprobs - inputs.sampler_logprobs)),
        "mean": lambda inputs: inputs.logprobs - inputs.logprobs.mean(),
    }

    class Contract(LossContract):
        def loss(self) -> Loss:
            return Loss(fn=lambda inputs: LossTerms(terms={"policy": terms[term](inputs)}))

    with pytest.raises(AssertionError):
        test(Contract())
