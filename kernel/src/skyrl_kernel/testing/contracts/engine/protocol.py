"""What the kernel relies on in every engine, whatever it generates with."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plugins import discover
from skyrl_kernel.protocols import Engine, Forgets, Served, Sleeps, Streams
from skyrl_kernel.records import Completion, GenerateRequest
from skyrl_kernel.slots import BACKENDS, PLUGINS
from skyrl_kernel.testing.contracts.engine.subject import EngineSubject


class EngineContract(EngineSubject):
    """Subclass and override `make`, `prompts` and `other_weights`."""

    def test_it_keeps_the_protocol(self) -> None:
        """All methods are there, and the initial weights have version 0."""
        engine = self.make()
        assert isinstance(engine, Engine)
        assert engine.version == 0
        assert isinstance(engine.lockstep, bool)

    def test_what_its_plugin_offers_is_there_and_is_checked(self) -> None:
        """A run believes ``plugin.toml``: a word too many fails in its middle, one too few is never used."""
        if self.plugin is None:
            pytest.skip("not checked: what the plugin offers, as the subclass names no `plugin`")
        installed = discover().named(self.plugin, (BACKENDS, PLUGINS))
        if not installed:
            pytest.skip(
                f"not checked: what '{self.plugin}' offers, as no plugin of that name is installed"
            )
        offers = installed[0].manifest.offers
        engine = self.make()
        parts = {
            "sleeps": isinstance(engine, Sleeps),
            "forgets_cache": isinstance(engine, Forgets),
            "streams": isinstance(engine, Streams),
            "shares_module": hasattr(engine, "share"),
        }
        found = {word for word, is_there in parts.items() if is_there}
        offered = {word for word in offers if word in parts}
        assert found == offered, "what the engine has beside what its plugin.toml offers"
        assert not isinstance(engine, Served) or "served" in offers
        assert not (engine.lockstep and "concurrent_generation" in offers), (
            "an engine in the caller's thread (lockstep) does not generate while the trainer trains"
        )
        assert self.has_random_sampling or "seeded_sampling" not in offers
        suites = {base.__name__ for base in type(self).__mro__}
        for word, suite in (("sleeps", "SleepContract"), ("served", "ServedContract")):
            assert word not in offers or suite in suites, (
                f"'{word}' is offered, and {suite} is not run"
            )

    def test_each_request_gets_its_completion_in_order(self) -> None:
        """Arrays agree in length, log-probs are log-probs, tokens carry the version."""
        requests = self._requests(8)
        completions = self._use(lambda engine: engine.generate(requests))

        assert len(completions) == len(requests)
        for request, one in zip(requests, completions, strict=True):
            assert 1 <= len(one.tokens) <= request.sampling.max_tokens
            assert len(one.logprobs) == len(one.versions) == len(one.tokens)
            assert np.isfinite(one.logprobs).all()
            assert (one.logprobs <= 1e-5).all()
            assert (one.versions == 0).all()
            assert one.finish_reason in {"stop", "length"}

    def test_no_requests_give_no_completions(self) -> None:
        """A round may be empty."""
        assert self._use(lambda engine: engine.generate([])) == []

    def test_length_is_the_reason_where_the_limit_was_reached_first(self) -> None:
        """One token: it is the end of the turn, or it was cut off."""
        for one in self._use(lambda engine: engine.generate(self._requests(1))):
            assert len(one.tokens) == 1

    def test_a_completion_depends_on_its_own_request_alone(self) -> None:
        """Whatever else is in the batch, and in whatever order."""
        requests = self._requests(6, temperature=1.0)
        together = self._use(lambda engine: engine.generate(requests))
        turned = self._use(lambda engine: engine.generate(requests[::-1]))[::-1]
        alone = [self._use(partial(_generate, requests=[request]))[0] for request in requests]
        for one, two, three in zip(together, turned, alone, strict=True):
            assert one.tokens.tolist() == two.tokens.tolist() == three.tokens.tolist()

    def test_other_seeds_give_other_completions(self) -> None:
        """Otherwise a group would be one trajectory many times."""
        if not self.has_random_sampling:
            pytest.skip("not checked: seeds, as the engine samples nothing (has_random_sampling)")
        prompt = self.prompts()[0]
        requests = [self._request(prompt, 12, seed=seed) for seed in range(8)]
        completions = self._use(lambda engine: engine.generate(requests))
        assert len({tuple(one.tokens.tolist()) for one in completions}) > 1

    def test_temperature_zero_ignores_the_seed(self) -> None:
        """Evaluation is greedy by default, and must not vary."""
        prompt = self.prompts()[0]
        requests = [self._request(prompt, 6, seed=seed, temperature=0.0) for seed in (1, 2)]
        first, second = self._use(lambda engine: engine.generate(requests))
        assert first.tokens.tolist() == second.tokens.tolist()

    def test_sampled_log_probs_are_those_of_the_weights(self) -> None:
        """Old log-probs are taken from the engine where it has the trainer's weights."""

        async def use(engine: Engine) -> None:
            requests = self._requests(6)
            completions = await engine.generate(requests)
            rows = [
                np.concatenate([request.tokens, one.tokens])
                for request, one in zip(requests, completions, strict=True)
            ]
            found = await engine.logprobs(rows, temperature=1.0)
            for request, one, row, logprobs in zip(requests, completions, rows, found, strict=True):
                assert len(logprobs) == len(row)
                assert logprobs[0] == 0
                again = logprobs[len(request.tokens) :]
                np.testing.assert_allclose(again, one.logprobs, atol=self.tolerance)

        self._use(use)

    def test_an_update_is_a_transaction_that_ends_with_its_version(self) -> None:
        """Begin, apply, finish; then tokens carry the version, and log-probs are of the new weights."""

        async def use(engine: Engine) -> tuple[list[np.ndarray], list[np.ndarray], Completion]:
            rows = list(self.prompts())
            before = await engine.logprobs(rows, temperature=1.0)
            await self._update(engine, 7)
            after = await engine.logprobs(rows, temperature=1.0)
            (completion,) = await engine.generate(self._requests(4)[:1])
            assert engine.version == 7
            return before, after, completion

        before, after, completion = self._use(use)
        assert any(not np.allclose(b, a) for b, a in zip(before, after, strict=True))
        assert (completion.versions == 7).all()

    def test_a_torn_update_is_an_error_and_the_old_weights_stay(self) -> None:
        """Another version than the one begun, weights before a beginning, or no weights at all."""

        async def use(engine: Engine) -> None:
            rows = list(self.prompts())
            before = await engine.logprobs(rows, temperature=1.0)
            with pytest.raises(WeightSyncError):
                await engine.finish_update(1)
            with pytest.raises(WeightSyncError):
                await engine.apply_update(self.other_weights())
            await engine.begin_update(1)
            with pytest.raises(WeightSyncError):
                await engine.finish_update(1)
            await engine.begin_update(1)
            await engine.apply_update(self.other_weights())
            with pytest.raises(WeightSyncError):
                await engine.finish_update(2)
            after = await engine.logprobs(rows, temperature=1.0)
            assert engine.version == 0
            for b, a in zip(before, after, strict=True):
                np.testing.assert_array_equal(b, a)

        self._use(use)

    def test_an_update_that_is_older_than_the_weights_is_an_error(self) -> None:
        """It has been overtaken on its way: versions never go back."""

        async def use(engine: Engine) -> None:
            await self._update(engine, 2)
            rows = list(self.prompts())
            before = await engine.logprobs(rows, temperature=1.0)
            with pytest.raises(WeightSyncError):
                await self._update(engine, 1)
            assert engine.version == 2
            after = await engine.logprobs(rows, temperature=1.0)
            for b, a in zip(before, after, strict=True):
                np.testing.assert_array_equal(b, a)
            await self._update(engine, 3)
            assert engine.version == 3

        self._use(use)

    def test_a_paused_engine_waits_until_it_may_go_on(self) -> None:
        """As during an update."""

        async def use(engine: Engine) -> None:
            await engine.pause()
            task = asyncio.ensure_future(engine.generate(self._requests(8)))
            await asyncio.sleep(0.05)
            assert not task.done()
            await engine.resume()
            assert len(await asyncio.wait_for(task, 60)) == len(self._requests(8))

        self._use(use)

    def test_an_abort_ends_what_runs_and_nothing_that_comes_after(self) -> None:
        """Requests return with what they have; the engine stays usable."""

        async def use(engine: Engine) -> None:
            await engine.pause()
            task = asyncio.ensure_future(engine.generate(self._requests(8)))
            await asyncio.sleep(0.05)
            await engine.abort()
            completions = await asyncio.wait_for(task, 60)
            await engine.resume()
            assert {one.finish_reason for one in completions} == {"abort"}
            for one in completions:
                assert len(one.tokens) == len(one.logprobs) == len(one.versions)
            (after,) = await engine.generate(self._requests(8)[:1])
            assert after.finish_reason != "abort"

        self._use(use)

    async def _update(self, engine: Engine, version: int) -> None:
        await engine.begin_update(version)
        await engine.apply_update(self.other_weights())
        await engine.finish_update(version)

    def _requests(self, max_tokens: int, temperature: float = 1.0) -> list[GenerateRequest]:
        """Two of each prompt."""
        return [
            self._request(prompt, max_tokens, seed=seed, temperature=temperature)
            for prompt in self.prompts()
            for seed in (1, 2)
        ]


async def _generate(engine: Engine, *, requests: Sequence[GenerateRequest]) -> list[Completion]:
    return await engine.generate(requests)
