"""What the suite asks of a subclass, and what its tests share."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from skyrl_kernel.defaults.push import push
from skyrl_kernel.protocols import Engine, SyncWeights, Tokenizer, Trainer
from skyrl_kernel.records import Completion, GenerateRequest, IntArray
from skyrl_kernel.testing.contracts.engine.reference import Reference, joined
from skyrl_kernel.testing.contracts.engine.subject import EngineSubject, T

if TYPE_CHECKING:
    import torch

Answered = tuple[GenerateRequest, Completion]


class ModelEngine(EngineSubject):
    """Subclass and override `make`, `reference` and `tokenizer`; the rest where it does not fit.

    What an engine does not offer is left as it is here, and the tests of it are
    skipped with a sentence that says what was not checked.
    """

    noise = 0.02
    """Standard deviation of what tells the weights of two updates apart: so much that
    log-probs differ by 100 tolerances and more, and so little that they stay finite."""
    transports: Sequence[str] = ("push",)
    """Ways for new weights to come, by names that `make_with` knows."""
    faults: Sequence[str] = ()
    """Kinds of damage on the way that `damaged` can do."""
    keeps_states = True
    """Whether a request that an update overtakes goes on with the keys and values that it
    has. False: they are computed again with the new weights."""

    def make_untouched(self) -> Engine:
        """As `make`, and its weights are those that it has loaded itself: nothing was pushed."""
        return self.make()

    def make_with(self, transport: str) -> Engine:
        """As `make`; new weights come by one of `transports`."""
        return self.make()

    def sync_weights(self) -> SyncWeights:
        """The stage by which new weights come; who tests a transport returns it here."""
        return push

    def reference(self) -> "torch.nn.Module":
        """A Hugging Face module with the first weights, loaded by Hugging Face's own code.

        The model should be small and random: completions that end by themselves
        now and then, few positions, log-probs that depend on every weight.
        """
        raise NotImplementedError("override reference()")

    def tokenizer(self) -> Tokenizer:
        """The model's."""
        raise NotImplementedError("override tokenizer()")

    def tokens_computed(self, engine: Engine) -> int | None:
        """Tokens that were sampled so far; None if nobody knows.

        Counted where they are computed, not by the object under test: by a server's
        own metrics, or by rows that go through the module.
        """
        return None

    def damaged(self, engine: Engine, fault: str) -> AbstractContextManager[None]:
        """Within it, new weights of this engine are damaged on their way, by one of `faults`."""
        raise NotImplementedError("override damaged(), as there are faults")

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Each transport and each fault is a test of its own."""
        if "transport" in metafunc.fixturenames:
            metafunc.parametrize("transport", self.transports)
        if "fault" in metafunc.fixturenames:
            reason = "not checked: damage on the way, as the subclass has no `faults`"
            nothing = pytest.param("", marks=pytest.mark.skip(reason=reason))
            metafunc.parametrize("fault", list(self.faults) if self.faults else [nothing])

    # --- for tests ---------------------------------------------------------------------

    def prompts(self) -> Sequence[IntArray]:
        """Three different prompts, of different lengths."""
        return [self._prompt(length, seed=length) for length in (4, 9, 17)]

    def other_weights(self) -> "Iterable[tuple[str, torch.Tensor]]":
        """All tensors of another model of the same shape, by Hugging Face name."""
        return self._first().perturbed(9, 5 * self.noise).weights()

    def _prompt(self, length: int, *, seed: int) -> IntArray:
        return np.random.default_rng(seed).integers(
            0, self._first().vocabulary, length, dtype=np.int32
        )

    def _first(self) -> Reference:
        return Reference(self.reference())

    def _long_requests(self) -> list[GenerateRequest]:
        """Sixteen that take all positions; some end early, as a random model ends at any token."""
        prompt = self.prompts()[0]
        count = self._first().positions - len(prompt)
        return [self._request(prompt, count, seed=seed) for seed in range(16)]

    def _use_with(self, transport: str, use: Callable[[Engine], Awaitable[T]]) -> T:
        return self._use(use, partial(self.make_with, transport))

    async def _push(self, weights: Reference, engine: Engine, version: int) -> None:
        """As the loop does it."""
        await self.sync_weights()(cast(Trainer, weights), engine, version)

    async def _differences(
        self,
        engine: Engine,
        reference: Reference,
        temperature: float = 1.0,
        *,
        expected_at: float | None = None,
    ) -> tuple[float, float]:
        """Most nats from the reference to (what was sampled, what was scored).

        Args:
            engine: Is asked.
            reference: Knows.
            temperature: Of both.
            expected_at: Of the reference, if it shall be another.
        """
        at = expected_at or temperature
        prompts = [prompt for prompt in self.prompts() for _ in range(4)]
        requests = [
            self._request(prompt, 12, seed=seed, temperature=temperature)
            for seed, prompt in enumerate(prompts)
        ]
        completions = await engine.generate(requests)
        rows = joined(prompts, [one.tokens for one in completions])
        scores = await engine.logprobs(rows, temperature=temperature)
        sampled = scored = 0.0
        for one, row, score in zip(completions, rows, scores, strict=True):
            expected = reference.logprobs(row, temperature=at)
            assert score.shape == expected.shape
            sampled = max(sampled, _most(one.logprobs, expected[-len(one.tokens) :]))
            scored = max(scored, _most(score, expected))
        return sampled, scored

    async def _assert_has(
        self, engine: Engine, reference: Reference, temperature: float = 1.0
    ) -> None:
        """The engine computes with these weights."""
        sampled, scored = await self._differences(engine, reference, temperature)
        assert sampled <= self.tolerance, f"sampled log-probs differ by {sampled:.3g} nats"
        assert scored <= self.tolerance, f"log-probs of given rows differ by {scored:.3g} nats"

    async def _assert_has_not(self, engine: Engine, reference: Reference) -> None:
        """The negative control: if it had these weights it would be seen."""
        least = min(await self._differences(engine, reference))
        assert least >= 100 * self.tolerance, (
            f"other weights change log-probs by {least:.3g} nats only; raise `noise`"
        )

    async def _traffic(self, engine: Engine, is_over: asyncio.Event) -> list[Answered]:
        """Ask until it is over, as the kernel asks: all in one call, or each in its own."""
        requests = self._long_requests()
        calls = [requests] if engine.lockstep else [[request] for request in requests]

        async def ask(call: list[GenerateRequest]) -> list[Answered]:
            answered: list[Answered] = []
            while not is_over.is_set():
                answered += zip(call, await engine.generate(call), strict=True)
                call = [replace(one, seed=one.seed + len(requests)) for one in call]
            return answered

        return [one for some in await asyncio.gather(*map(ask, calls)) for one in some]

    async def _count(self, engine: Engine) -> int | None:
        """`tokens_computed`, while the engine's callers go on."""
        return await asyncio.to_thread(self.tokens_computed, engine)

    async def _under_way(self, engine: Engine, since: int | None) -> None:
        """Return when an engine that has just been asked has sampled some tokens."""
        for _ in range(200):
            await asyncio.sleep(0.05)
            count = await self._count(engine)
            if count is None or since is None or count >= since + 16:
                return
        raise AssertionError("nothing was computed within 10 s")


def _most(found: Any, expected: Any) -> float:
    """Most nats between two; not a number counts as infinitely many."""
    return float(np.abs(np.nan_to_num(found - expected, nan=np.inf)).max(initial=0.0))


def split(reference: Reference, parts: int) -> "Iterator[list[tuple[str, torch.Tensor]]]":
    """The weights in parts, the last names first."""
    weights = list(reference.weights())[::-1]
    size = -(-len(weights) // parts)
    for start in range(0, len(weights), size):
        yield weights[start : start + size]
