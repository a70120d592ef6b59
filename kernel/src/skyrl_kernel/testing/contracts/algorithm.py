"""What an algorithm must keep: its advantage and its loss."""

import copy
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from skyrl_kernel.batch import credit
from skyrl_kernel.measure import refuse_names
from skyrl_kernel.protocols import Advantage, Loss
from skyrl_kernel.records import Scored, Scores, TokenAdvantages
from skyrl_kernel.run.checkpoint import dump_json
from skyrl_kernel.testing.contracts.minibatch import gradients, random_minibatch
from skyrl_kernel.testing.groups import judged_group

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, ValueInputs

Credited = list[list[tuple[TokenAdvantages, ...]]]


class AdvantageContract:
    """Subclass and override `advantage`."""

    knows_groups = True
    """False if a trajectory's advantage does not depend on the others of its group."""
    reads_rewards = True
    """False if it credits by something else, such as a teacher's log-probs."""
    ignores_reward_shift = False
    """True if the same number added to every reward of the batch changes nothing."""
    equal_rewards_give_nothing = False
    """True if a group whose rewards are all equal is credited with 0."""

    def advantage(self) -> Advantage:
        """What ``trainer.algorithm.advantage_estimator`` names; a new one at each call."""
        raise NotImplementedError("override advantage()")

    def test_every_segment_is_credited_with_finite_numbers_of_its_own_shape(self) -> None:
        """Groups of one, of equal rewards, of several turns and, if it takes them, several segments."""
        advantage = self.advantage()
        groups = [
            judged_group([[0.0], [1.0], [0.5]]),
            judged_group([[1.0], [1.0]]),
            judged_group([[0.25]]),
            judged_group([[0.0, 1.0], [0.5, 0.5]]),
            judged_group([[1.0], [-3.0]], num_segments=1 if advantage.needs_one_row else 2),
        ]
        credit(advantage, groups, masked=())

    def test_an_empty_batch_and_an_empty_group_are_no_error(self) -> None:
        """Every trajectory of a group may have been lost."""
        assert self._credit([]) == []
        assert [len(group) for group in self._credit([judged_group([[1.0], [0.0]]), []])] == [2, 0]

    def test_what_is_not_trained_on_is_credited_with_nothing_and_types_are_the_kernels(
        self,
    ) -> None:
        """Advantages and returns are float32, masks are bool, and a masked token's advantage is 0."""
        groups = [judged_group([[0.0, 1.0], [1.0, 0.5]]), judged_group([[1.0], [0.0]])]
        for one in (entry for group in self._credit(groups) for rows in group for entry in rows):
            assert one.loss_mask.dtype == np.bool_
            assert one.advantages.dtype == np.float32
            assert one.returns is None or one.returns.dtype == np.float32
            assert not one.advantages[~one.loss_mask].any(), "an advantage where the mask is False"

    def test_it_needs_no_score_but_those_that_it_names(self) -> None:
        """The kernel computes no others: they are None in a run."""
        advantage = self.advantage()
        groups = [judged_group([[0.0], [1.0], [0.25]])]
        named = [[_with_scores(one, advantage.needs) for one in group] for group in groups]
        _assert_equal(self._credit(named), self._credit(groups))

    def test_what_it_measures_has_names_and_is_numbers(self) -> None:
        """``AREA/NAME``, of a batch with groups and of one whose trajectories were all lost."""
        advantage = self.advantage()
        for groups in ([judged_group([[0.0], [1.0]]), judged_group([[1.0], [1.0]])], []):
            credited = credit(advantage, groups, masked=())
            refuse_names(advantage.measure(credited), "the advantage")

    def test_what_it_remembers_goes_through_a_checkpoint(self) -> None:
        """One that goes on from the state, as JSON, credits as the one that was not interrupted."""
        first, second = judged_group([[0.0], [1.0], [0.25]]), judged_group([[2.0], [1.0], [1.0]])
        straight, resumed = self.advantage(), self.advantage()
        straight([first, second])
        state = dump_json(straight.state_dict(), "state_dict()")
        resumed.load_state_dict(json.loads(state))
        assert dump_json(resumed.state_dict(), "state_dict()") == state
        _assert_equal(straight([second, first]), resumed([second, first]))

    def test_nothing_that_comes_in_is_changed(self) -> None:
        """The same records are written to the run folder."""
        groups = [judged_group([[0.0], [1.0]])]
        before = copy.deepcopy(groups)
        self._credit(groups)
        for one, two in zip(groups[0], before[0], strict=True):
            for left, right in zip(one.trajectory.segments, two.trajectory.segments, strict=True):
                np.testing.assert_array_equal(left.loss_mask, right.loss_mask)
                np.testing.assert_array_equal(left.tokens, right.tokens)

    def test_equal_inputs_give_equal_advantages(self) -> None:
        """No hidden random numbers, no state of the call before."""
        groups = [judged_group([[0.0], [1.0], [0.25]])]
        _assert_equal(self._credit(groups), self._credit(groups))

    def test_the_order_within_a_group_and_of_groups_changes_nothing(self) -> None:
        """Trajectories arrive in no particular order."""
        first, second = judged_group([[0.0], [1.0], [0.25]]), judged_group([[2.0], [1.0], [1.0]])
        straight = self._credit([first, second])
        turned = self._credit([second[::-1], first[::-1]])
        _assert_equal(straight, [group[::-1] for group in turned[::-1]])

    def test_the_order_of_random_trajectories_and_groups_changes_nothing(self) -> None:
        """As they arrive; with hypothesis."""
        given, st = _hypothesis()

        @given(_rewards(st), st.randoms(use_true_random=False))
        def check(rewards: list[list[list[float]]], random: Any) -> None:
            groups = [judged_group(one) for one in rewards]
            order = random.sample(range(len(groups)), len(groups))
            inner = [random.sample(range(len(group)), len(group)) for group in groups]
            turned = self._credit([[groups[g][i] for i in inner[g]] for g in order])
            straight = self._credit(groups)
            _assert_equal([[straight[g][i] for i in inner[g]] for g in order], turned)

        check()

    def test_a_shift_of_all_rewards_changes_nothing_where_that_is_promised(self) -> None:
        """With hypothesis."""
        if not self.ignores_reward_shift:
            pytest.skip("not promised")
        given, st = _hypothesis()

        @given(_rewards(st), st.integers(-8, 8))
        def check(rewards: list[list[list[float]]], quarters: int) -> None:
            shifted = [
                [[*turns[:-1], turns[-1] + quarters / 4] for turns in one] for one in rewards
            ]
            if self.knows_groups:  # a group of one has nothing to be compared with
                rewards = [one for one in rewards if len(one) > 1]
                shifted = [one for one in shifted if len(one) > 1]
            straight = self._credit([judged_group(one) for one in rewards])
            _assert_equal(straight, self._credit([judged_group(one) for one in shifted]), atol=1e-4)

        check()

    def test_equal_rewards_earn_nothing_where_that_is_promised(self) -> None:
        """Exactly: rounding must not become a signal. With hypothesis."""
        if not self.equal_rewards_give_nothing:
            pytest.skip("not promised")
        given, st = _hypothesis()

        @given(st.floats(-10, 10), st.integers(2, 8))
        def check(reward: float, size: int) -> None:
            for rows in self._credit(
                [judged_group([[reward]] * size), judged_group([[0.0], [1.0]])]
            )[0]:
                assert not any(entry.advantages.any() for entry in rows), (
                    "equal_rewards_give_nothing is promised: a group of equal rewards is credited with "
                    "0; set it to False if the baseline is not the group's own"
                )

        check()

    def test_what_single_tokens_earned_counts_as_reward(self) -> None:
        """Such as a KL penalty: `Scored.total_reward` or `Scored.rewards_by_token` has it."""
        if not self.reads_rewards:
            pytest.skip("reads no rewards")
        fined, free, other = judged_group([[1.0], [1.0], [0.0]])
        mask = fined.trajectory.segments[0].loss_mask
        fined = replace(fined, token_rewards=(np.where(mask, np.float32(-0.25), np.float32(0)),))
        ((one,), (two,), _) = self._credit([[fined, free, other]])[0]
        assert one.advantages[mask].mean() < two.advantages[mask].mean()

    def test_a_better_trajectory_is_not_credited_less(self) -> None:
        """Within a group that differs in nothing but the reward."""
        ((worse,), (middle,), (better,)) = self._credit([judged_group([[0.0], [0.5], [1.0]])])[0]
        means = [entry.advantages[entry.loss_mask].mean() for entry in (worse, middle, better)]
        assert means == sorted(means)
        if self.knows_groups:
            assert means[0] < means[2]

    def _credit(self, groups: Sequence[Sequence[Scored]]) -> Credited:
        return self.advantage()(groups)


class LossContract:
    """Subclass and override `loss`. Needs torch."""

    is_policy_gradient = True
    """False if, where the policy has not moved yet, the gradient of a token is not −advantage."""
    needs_advantages = True
    """False if tokens have a gradient without an advantage."""
    group_size: int | None = None
    """Trajectories of each group, if the loss takes no other number."""

    def loss(self) -> Loss:
        """What ``trainer.algorithm.policy_loss_type`` names."""
        raise NotImplementedError("override loss()")

    def test_every_term_is_per_token_and_has_a_coefficient(self) -> None:
        """``policy`` is among them."""
        inputs = _inputs(self.loss())
        terms = self._terms(inputs)
        assert "policy" in terms
        for name, term in terms.items():
            assert term.shape == inputs.logprobs.shape, name
            assert name in self.loss().coefficients

    def test_what_trains_a_critic_is_the_term_value(self) -> None:
        """If there is such: per token, with a coefficient and a gradient for the values."""
        loss = self.loss()
        if loss.critic is None:
            return
        for count in (12, 0):
            inputs = _value_inputs(loss, count)
            terms = loss.critic(inputs).terms
            assert list(terms) == ["value"]
            assert terms["value"].shape == inputs.values.shape
            assert terms["value"].requires_grad
        assert "value" in loss.coefficients

    def test_a_micro_batch_without_tokens_is_no_error(self) -> None:
        """All its rows may be masked."""
        for term in self._terms(_inputs(self.loss(), count=0)).values():
            assert term.shape == (0,)

    def test_terms_and_gradients_are_finite(self) -> None:
        """Also where the policy has moved far from the old one."""
        import torch

        for shift in (0.0, 3.0, -30.0, 30.0, -1e4, 1e4):
            inputs = _inputs(self.loss(), shift=shift)
            terms = self._terms(inputs)
            torch.stack([term.sum() for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
            assert all(bool(torch.isfinite(term).all()) for term in terms.values())
            assert inputs.logprobs.grad is not None
            assert bool(torch.isfinite(inputs.logprobs.grad).all())

    def test_it_is_a_pure_function(self) -> None:
        """The same inputs give the same bits, and stay as they were."""
        import torch

        loss = self.loss()
        inputs = _inputs(loss)
        before = inputs.logprobs.detach().clone()
        first, second = self._terms(inputs), self._terms(inputs)
        for name, term in first.items():
            torch.testing.assert_close(term, second[name], rtol=0, atol=0)
        torch.testing.assert_close(inputs.logprobs.detach(), before, rtol=0, atol=0)

    def test_atoms_do_not_see_each_other(self) -> None:
        """What a micro-batch holds beside a trajectory (or group) does not change its terms."""
        import torch

        loss = self.loss()
        if loss.prepare is not None:
            pytest.skip("not checked: its terms depend on the whole mini-batch")
        inputs = _inputs(loss)
        owner = inputs.trajectory if loss.atom == "trajectory" else inputs.group
        whole = self._terms(inputs)
        for number in set(owner.tolist()):
            part = self._terms(_select(inputs, owner == number))
            for name, term in part.items():
                torch.testing.assert_close(term, whole[name][owner == number])

    def test_neither_order_nor_micro_batches_nor_ranks_change_a_gradient(self) -> None:
        """Atoms stay whole; everything else may be dealt out. With hypothesis."""
        loss = self.loss()
        given, st = _hypothesis()

        @given(st.integers(0, 10**6), self._groups(st), st.integers(1, 4), st.integers(0, 10**6))
        def check(seed: int, groups: list[list[int]], number: int, order: int) -> None:
            batch = random_minibatch(loss, seed=seed, groups=groups)
            whole = gradients(loss, [batch])
            parts = batch.parts(loss.atom, number)
            places = np.random.default_rng(order).permutation(len(batch.samples)).tolist()
            for other in (gradients(loss, parts), gradients(loss, [batch.rows(places)])):
                assert other.keys() == whole.keys()
                for token, pair in whole.items():
                    np.testing.assert_allclose(other[token], pair, rtol=1e-4, atol=1e-6)

        check()

    def test_where_the_policy_has_not_moved_the_gradient_is_the_policy_gradient(self) -> None:
        """−weight × advantage at every token: ratio 1 is on-policy. With hypothesis."""
        if not self.is_policy_gradient:
            pytest.skip("not a policy gradient")
        loss = self.loss()
        given, st = _hypothesis()

        @given(st.integers(0, 10**6), self._groups(st))
        def check(seed: int, groups: list[list[int]]) -> None:
            batch = random_minibatch(loss, seed=seed, groups=groups, spread=0.0)
            found = gradients(loss, [batch])
            for sample in batch.samples:
                for place in np.flatnonzero(sample.loss_mask):
                    token = (sample.trajectory, int(sample.tokens[place]) * 100 + int(place))
                    expected = -sample.loss_weights["policy"][place] * sample.advantages[place]
                    np.testing.assert_allclose(found[token][0], expected, rtol=1e-4, atol=1e-6)

        check()

    def test_without_advantages_nothing_is_learned(self) -> None:
        """Wherever the policy has gone meanwhile. With hypothesis."""
        if not self.needs_advantages:
            pytest.skip("learns from other things too")
        loss = self.loss()
        given, st = _hypothesis()

        @given(st.integers(0, 10**6), self._groups(st))
        def check(seed: int, groups: list[list[int]]) -> None:
            batch = random_minibatch(loss, seed=seed, groups=groups, advantage=0.0)
            assert not any(policy for policy, _ in gradients(loss, [batch]).values())

        check()

    def _groups(self, st: Any) -> Any:
        """Rows of each trajectory of each group."""
        size = self.group_size
        group = st.lists(st.integers(1, 2), min_size=size or 1, max_size=size or 3)
        return st.lists(group, min_size=1, max_size=3)

    def _terms(self, inputs: "LossInputs") -> "dict[str, Tensor]":
        loss = self.loss()
        if loss.prepare is not None:
            inputs = replace(inputs, minibatch=loss.prepare(inputs))
        return dict(loss(inputs).terms)


class AlgorithmContract(AdvantageContract, LossContract):
    """Both, for a plugin that brings both."""


Given = Callable[..., Callable[[Callable[..., None]], Callable[[], None]]]


def _hypothesis() -> tuple[Given, Any]:
    """``given``, quick and repeatable, and the strategies."""
    pytest.importorskip("hypothesis", reason="not checked: random cases need hypothesis")
    from hypothesis import given, settings, strategies

    settled = settings(max_examples=25, deadline=None, derandomize=True, database=None)
    return (lambda *drawn: lambda check: settled(given(*drawn)(check))), strategies


def _rewards(st: Any) -> Any:
    """[groups][trajectories][turns], in quarters, so that sums are exact."""
    turns = st.lists(st.integers(-8, 8).map(lambda number: number / 4), min_size=1, max_size=2)
    return st.lists(st.lists(turns, min_size=1, max_size=4), min_size=1, max_size=3)


def _assert_equal(left: Credited, right: Credited, atol: float = 1e-6) -> None:
    for one, two in zip(left, right, strict=True):
        for a, b in zip(one, two, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(x.advantages, y.advantages, atol=atol)
                np.testing.assert_array_equal(x.loss_mask, y.loss_mask)


def _with_scores(scored: Scored, needs: Collection[str]) -> Scored:
    """The same with no other scores than ``needs``."""
    given = [Scores(**{name: getattr(one, name) for name in needs}) for one in scored.scores]
    return replace(scored, scores=tuple(given))


def _inputs(loss: Loss, *, count: int = 12, shift: float = 0.0) -> "LossInputs":
    """Tokens of three trajectories in two groups; the policy is ``shift`` nats off the old one."""
    import torch

    from skyrl_kernel.torch import LossInputs

    numbers = torch.Generator().manual_seed(0)
    old = -torch.rand(count, generator=numbers) - 0.1
    trajectory = torch.arange(count) * 3 // max(count, 1)

    def score(name: str) -> Any:
        return old.clone() if name in loss.needs else None

    return LossInputs(
        logprobs=(old + shift).requires_grad_(),
        entropy=torch.rand(count, generator=numbers),
        advantages=torch.randn(count, generator=numbers),
        trajectory=trajectory,
        group=trajectory // 2,
        position=torch.arange(count),
        old_logprobs=score("old_logprobs"),
        ref_logprobs=score("ref_logprobs"),
        teacher_logprobs=score("teacher_logprobs"),
        sampler_logprobs=old.clone(),
        returns=torch.zeros(count),
        seed=5,
    )


def _value_inputs(loss: Loss, count: int) -> "ValueInputs":
    """The same tokens, for the critic."""
    import torch

    from skyrl_kernel.torch import ValueInputs

    policy = _inputs(loss, count=count)
    return ValueInputs(
        values=torch.linspace(-1, 1, count).requires_grad_(),
        trajectory=policy.trajectory,
        group=policy.group,
        position=policy.position,
        old_values=torch.zeros(count) if "values" in loss.needs else None,
        returns=torch.ones(count),
    )


def _select(inputs: "LossInputs", chosen: "Tensor") -> "LossInputs":
    import torch

    names = [name for name in inputs.__slots__ if isinstance(getattr(inputs, name), torch.Tensor)]
    return replace(inputs, **{name: getattr(inputs, name)[chosen] for name in names})
