"""New weights while requests run, and weights that must be refused."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from skyrl_kernel.errors import SkyrlError, WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import FloatArray, IntArray
from skyrl_kernel.testing.contracts.engine.model import Answered, ModelEngine, split
from skyrl_kernel.testing.contracts.engine.reference import (
    Reference,
    joined,
    logprobs_across_updates,
)

if TYPE_CHECKING:
    import torch

    Weights = Sequence[tuple[str, torch.Tensor]]


class UpdateContract(ModelEngine):
    """An update changes what is sampled from then on; a refused one changes nothing."""

    def test_requests_go_on_across_updates_with_the_new_weights(self, transport: str) -> None:
        """Each token carries the version of the weights that sampled it, and has their log-prob."""
        first = self._first()
        weights = {0: first, 1: first.perturbed(1, self.noise), 2: first.perturbed(2, self.noise)}

        async def use(engine: Engine) -> list[Answered]:
            is_over = asyncio.Event()
            traffic = asyncio.ensure_future(self._traffic(engine, is_over))
            try:
                for version in (1, 2):
                    await self._under_way(engine, await self._count(engine))
                    await self._push(weights[version], engine, version)
                    (after,) = await engine.generate([self._request(self.prompts()[1], 4)])
                    assert set(after.versions.tolist()) == {version}
            finally:
                is_over.set()
            return await traffic

        answered = self._use_with(transport, use)
        overtaken = {tuple(sorted(set(one.versions.tolist()))) for _, one in answered}
        assert any(len(versions) > 1 for versions in overtaken), "no update came in mid-request"
        unseen = 0.0
        for asked, one in answered:
            assert one.versions.tolist() == sorted(one.versions.tolist())
            assert one.finish_reason in {"stop", "length"}
            (row,) = joined([asked.tokens], [one.tokens])
            expected = self._expected(weights, row, one.versions)
            np.testing.assert_allclose(one.logprobs, expected, atol=self.tolerance)
            old = first.logprobs(row)[len(asked.tokens) :]
            unseen = max(unseen, float(np.abs(old - one.logprobs).max()))
        assert unseen >= 100 * self.tolerance  # the negative control

    def _expected(
        self, weights: dict[int, Reference], row: IntArray, versions: IntArray
    ) -> FloatArray:
        """[C] of the sampled tokens, by what `keeps_states` says of the tokens before them."""
        if self.keeps_states:
            return logprobs_across_updates(weights, row, versions)
        by_version = {version: weights[version].logprobs(row) for version in set(versions.tolist())}
        places = enumerate(versions.tolist(), start=len(row) - len(versions))
        return np.array([by_version[version][place] for place, version in places], np.float32)

    def test_no_prefix_of_older_weights_is_used_again(self, transport: str) -> None:
        """A cache of prompts ends with the weights that it was computed with."""
        prompt = self._prompt(self._first().positions * 3 // 4, seed=3)
        requests = [self._request(prompt, 8, seed=seed) for seed in range(4)]
        old = self._first()
        new = old.perturbed(1, self.noise)

        async def differences(engine: Engine, reference: Reference) -> float:
            apart: list[FloatArray] = []
            for one in await engine.generate(requests):
                (row,) = joined([prompt], [one.tokens])
                expected = reference.logprobs(row)
                apart.append(expected[len(prompt) :] - one.logprobs)
                (score,) = await engine.logprobs([row], temperature=1.0)
                apart.append(expected - score)
            return float(np.abs(np.concatenate(apart)).max())  # NaN if any is

        async def use(engine: Engine) -> None:
            for _ in range(2):  # the second time from the cache
                assert await differences(engine, old) <= self.tolerance
            assert await differences(engine, new) >= 100 * self.tolerance  # the negative control
            await self._push(new, engine, 1)
            for _ in range(2):
                assert await differences(engine, new) <= self.tolerance

        self._use_with(transport, use)

    # --- refused -----------------------------------------------------------------------

    def test_tensors_that_are_missing_are_an_error(self) -> None:
        """One is enough."""
        self._assert_refused(lambda engine, new: _send(engine, list(new.weights())[:-1]))

    def test_a_tensor_that_the_model_does_not_have_is_an_error(self) -> None:
        """All others are there."""
        self._assert_refused(
            lambda engine, new: _send(
                engine, [*new.weights(), ("no.such.weight", next(new.weights())[1])]
            )
        )

    def test_a_tensor_of_another_shape_is_an_error(self) -> None:
        """Also where the number of its elements is right."""
        self._assert_refused(
            lambda engine, new: _send(engine, [(n, t[None]) for n, t in new.weights()])
        )
        self._assert_refused(
            lambda engine, new: _send(
                engine, [(n, t[:-1] if n == _last(new) else t) for n, t in new.weights()]
            )
        )

    def test_a_tensor_of_integers_is_an_error(self) -> None:
        """Other floating point types are converted; integers are no weights."""
        self._assert_refused(
            lambda engine, new: _send(
                engine, [(n, t.int() if n == _last(new) else t) for n, t in new.weights()]
            )
        )

    def test_a_tensor_that_comes_twice_is_an_error(self) -> None:
        """Nobody knows which of the two is meant."""
        self._assert_refused(
            lambda engine, new: _send(engine, [*new.weights(), next(new.weights())])
        )

    def test_weights_without_a_beginning_are_an_error(self) -> None:
        """As are those that come after a refusal."""

        async def unbegun(engine: Engine, new: Reference) -> None:
            await engine.apply_update(new.weights())
            await engine.finish_update(3)

        self._assert_refused(unbegun)

    def test_a_beginning_forgets_the_one_before(self) -> None:
        """What came for the one before does not count for the next."""

        async def begun_again(engine: Engine, new: Reference) -> None:
            await engine.begin_update(3)
            await engine.apply_update(new.weights())
            await engine.begin_update(3)
            await engine.finish_update(3)

        async def begun_as_another(engine: Engine, new: Reference) -> None:
            await engine.begin_update(3)
            await engine.begin_update(4)
            await engine.apply_update(new.weights())
            await engine.finish_update(3)

        self._assert_refused(begun_again)
        self._assert_refused(begun_as_another)

    def test_a_part_that_does_not_fit_ends_the_update(self) -> None:
        """What fits and comes afterwards is not added to what came before."""

        async def goes_on(engine: Engine, new: Reference) -> None:
            one, two = split(new, 2)
            await engine.begin_update(3)
            await engine.apply_update(one)
            with pytest.raises(WeightSyncError):
                await engine.apply_update([("no.such.weight", one[0][1])])
            await engine.apply_update(two)
            await engine.finish_update(3)

        self._assert_refused(goes_on)

    def test_weights_that_cannot_be_read_to_their_end_are_an_error(self) -> None:
        """The trainer's own error comes through."""

        async def torn(engine: Engine, new: Reference) -> None:
            def weights() -> "Iterator[tuple[str, torch.Tensor]]":
                yield next(new.weights())
                raise WeightSyncError("the trainer is gone")

            await engine.begin_update(3)
            await engine.apply_update(weights())
            await engine.finish_update(3)

        self._assert_refused(torn)

    def test_an_update_that_is_finished_as_another_is_an_error(self) -> None:
        """Also as a later one."""

        async def as_another(engine: Engine, new: Reference) -> None:
            await engine.begin_update(3)
            await engine.apply_update(new.weights())
            await engine.finish_update(4)

        self._assert_refused(as_another)

    def test_weights_that_are_not_finite_are_refused_or_make_generation_fail(self) -> None:
        """Either is an error with a type; a good update heals it."""

        async def use(engine: Engine) -> None:
            first = self._first()
            broken = first.perturbed(1, self.noise)
            for _, tensor in broken.weights():
                tensor.fill_(float("nan"))
            with pytest.raises(SkyrlError):  # noqa: PT012
                await self._push(broken, engine, 1)
                await engine.generate([self._request(prompt, 4) for prompt in self.prompts()])
            second = first.perturbed(2, self.noise)
            await self._push(second, engine, 2)
            await self._assert_has(engine, second)

        self._use(use)

    def test_damage_on_the_way_is_an_error(self, fault: str) -> None:
        """Truncated, changed or lost: whatever can happen to this engine's updates."""

        async def damaged(engine: Engine, new: Reference) -> None:
            with self.damaged(engine, fault):
                await self._push(new, engine, 3)

        self._assert_refused(damaged)

    def _assert_refused(self, send: Callable[[Engine, Reference], Awaitable[None]]) -> None:
        """``send`` is a `WeightSyncError`; the old weights stay bit for bit, and the next update is taken."""

        async def use(engine: Engine) -> None:
            new = self._first().perturbed(1, self.noise)
            before = await self._scores(engine)
            with pytest.raises(WeightSyncError):
                await send(engine, new)
            assert engine.version == 0
            for b, a in zip(before, await self._scores(engine), strict=True):
                np.testing.assert_array_equal(b, a)
            (one,) = await engine.generate([self._request(self.prompts()[0], 4)])
            assert set(one.versions.tolist()) == {0}
            await self._push(new, engine, 5)
            await self._assert_has(engine, new)

        self._use(use)

    async def _scores(self, engine: Engine) -> list[FloatArray]:
        return await engine.logprobs(list(self.prompts()), temperature=1.0)


async def _send(engine: Engine, weights: "Weights") -> None:
    await engine.begin_update(3)
    await engine.apply_update(weights)
    await engine.finish_update(3)


def _last(reference: Reference) -> str:
    """The name of the last tensor."""
    return list(reference.weights())[-1][0]
