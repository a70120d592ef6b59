"""Every request has its answer, and nothing is computed that nobody waits for."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from skyrl_kernel.errors import TrajectoryError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import Completion, GenerateRequest, IntArray
from skyrl_kernel.testing.contracts.engine.model import Answered, ModelEngine
from skyrl_kernel.testing.contracts.engine.reference import Reference, joined

MANY = 2000
ROUND = 200
SETTLED_S = 0.5
"""For so long nothing is computed where nothing runs any more."""
ABORTS = 5
"""Of which at least one comes in the middle of a completion."""


class WorkContract(ModelEngine):
    """Aborts, callers that go away, and many requests at once."""

    def test_an_abort_stops_what_runs_and_keeps_what_there_is(self) -> None:
        """Partial completions come with their log-probs; what is asked later is unharmed."""
        good = [self._request(prompt, 6, seed=1) for prompt in self.prompts()]

        async def use(engine: Engine) -> tuple[list[Answered], list[list[Completion]]]:
            before = await engine.generate(good)
            answered = await self._aborted(engine)
            return answered, [before, await engine.generate(good)]

        answered, (before, after) = self._use(use)
        aborted = [one for _, one in answered if one.finish_reason == "abort"]
        assert any(len(one.tokens) for one in aborted), "nothing was aborted in the middle"
        first = self._first()
        for asked, one in answered:
            (row,) = joined([asked.tokens], [one.tokens])
            expected = first.logprobs(row)[len(asked.tokens) :]
            np.testing.assert_allclose(one.logprobs, expected, atol=self.tolerance)
        for one, two in zip(before, after, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist()
            assert one.finish_reason == two.finish_reason

    def test_after_an_abort_nothing_is_computed(self) -> None:
        """Counted where it is computed: an answer alone does not say that the work has ended."""

        async def use(engine: Engine) -> None:
            await self._counted(engine)
            await self._aborted(engine)
            await self._assert_stands_still(engine)

        self._use(use)

    def test_a_pause_in_the_middle_stops_what_runs_and_loses_nothing(self) -> None:
        """Of requests that are under way: those that come later may be held before they are sent."""

        async def use(engine: Engine) -> list[Answered]:
            is_over = asyncio.Event()
            since = await self._counted(engine)
            task = asyncio.ensure_future(self._traffic(engine, is_over))
            await self._under_way(engine, since)
            await engine.pause()
            await self._assert_stands_still(engine)
            is_over.set()
            assert not task.done(), "nothing was under way"
            await engine.resume()
            return await asyncio.wait_for(task, self.patience_s)

        assert {one.finish_reason for _, one in self._use(use)} <= {"stop", "length"}

    def test_the_work_of_a_caller_that_goes_away_ends_too(self) -> None:
        """As after `generator.request_timeout_s`; who asks next finds the engine free."""

        async def use(engine: Engine) -> None:
            since = await self._counted(engine)
            task = asyncio.ensure_future(self._traffic(engine, asyncio.Event()))
            await self._under_way(engine, since)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await self._assert_stands_still(engine)
            await self._assert_has(engine, self._first())

        self._use(use)

    def test_of_two_thousand_requests_none_is_lost_or_doubled(self) -> None:
        """Each has the answer to its own prompt."""
        requests = self._many()

        async def use(engine: Engine) -> tuple[list[Completion], int | None, int | None]:
            before = await self._count(engine)
            return await engine.generate(requests), before, await self._count(engine)

        completions, before, after = self._use(use)
        self._assert_answered(requests, completions, {0: self._first()})
        if before is not None and after is not None:
            assert after - before == MANY

    def test_an_update_among_two_thousand_requests_loses_none(self) -> None:
        """Each is answered by the weights whose version its answer carries."""
        requests = self._many()
        first = self._first()
        second = first.perturbed(1, self.noise)

        async def use(engine: Engine) -> list[Completion]:
            await engine.begin_update(1)
            await engine.apply_update(second.weights())
            since = await self._count(engine)
            answers = asyncio.ensure_future(self._ask(engine, requests))
            await self._under_way(engine, since)
            await engine.pause()
            await engine.finish_update(1)
            await engine.resume()
            return await answers

        completions = self._use(use)
        self._assert_answered(requests, completions, {0: first, 1: second})
        versions = [int(one.versions[0]) for one in completions]
        assert set(versions) == {0, 1}, "the update did not come among them"

    def test_a_prompt_that_is_too_long_costs_its_own_trajectory(self) -> None:
        """It is an error with a type; what is asked at the same time and later is not harmed."""
        too_long = self._prompt(self._first().positions + 1, seed=0)
        good = [self._request(prompt, 6, seed=1) for prompt in self.prompts()]

        async def use(engine: Engine) -> list[list[Completion]]:
            before = await engine.generate(good)
            task = asyncio.ensure_future(engine.generate(good))
            with pytest.raises(TrajectoryError):
                await engine.generate([self._request(too_long, 4)])
            return [before, await task, await engine.generate(good)]

        before, meanwhile, after = self._use(use)
        for one, two, three in zip(before, meanwhile, after, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist() == three.tokens.tolist()

    async def _ask(self, engine: Engine, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """As the kernel asks: in rounds, or each in its own call and all at once."""
        if engine.lockstep:
            rounds = [requests[start : start + ROUND] for start in range(0, len(requests), ROUND)]
            return [one for some in rounds for one in await engine.generate(some)]
        answers = await asyncio.gather(*(engine.generate([request]) for request in requests))
        return [one for some in answers for one in some]

    async def _counted(self, engine: Engine) -> int:
        count = await self._count(engine)
        if count is None:
            pytest.skip("not checked: whether work ends; override tokens_computed()")
        return count

    async def _aborted(self, engine: Engine) -> list[Answered]:
        """What comes back where an abort came in the middle.

        On a busy machine it may come when all that ran has just ended by itself, and is then repeated.
        """
        for _ in range(ABORTS):
            answered = await self._aborted_once(engine)
            if any(one.finish_reason == "abort" and len(one.tokens) for _, one in answered):
                break
        return answered

    async def _aborted_once(self, engine: Engine) -> list[Answered]:
        is_over = asyncio.Event()
        since = await self._count(engine)
        task = asyncio.ensure_future(self._traffic(engine, is_over))
        await self._under_way(engine, since)
        is_over.set()  # nobody asks any more
        await engine.abort()
        return await asyncio.wait_for(task, self.patience_s)

    async def _assert_stands_still(self, engine: Engine) -> None:
        """At most the step that was under way is still computed."""
        before = await self._counted(engine)
        await asyncio.sleep(SETTLED_S)
        settled = await self._counted(engine)
        assert settled - before <= 2 * len(self._long_requests()), "it has gone on"
        await asyncio.sleep(SETTLED_S)
        assert await self._counted(engine) == settled, "it goes on"

    def _many(self) -> list[GenerateRequest]:
        vocabulary = self._first().vocabulary
        prompts = np.random.default_rng(0).integers(0, vocabulary, (MANY, 4), dtype=np.int32)
        return [self._request(prompt, 1, temperature=0.0) for prompt in prompts]

    def _assert_answered(
        self,
        requests: Sequence[GenerateRequest],
        completions: Sequence[Completion],
        by_version: dict[int, Reference],
    ) -> None:
        """One greedy token each, the most likely one of its prompt."""
        assert len(completions) == len(requests)
        prompts: IntArray = np.stack([request.tokens for request in requests])
        logprobs = {version: one.next_logprobs(prompts) for version, one in by_version.items()}
        for place, one in enumerate(completions):
            (token,), (version,) = one.tokens, one.versions
            expected = logprobs[int(version)][place]
            assert expected[token] >= expected.max() - self.tolerance
            assert abs(one.logprobs[0] - expected[token]) <= self.tolerance
