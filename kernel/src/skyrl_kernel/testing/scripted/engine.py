"""An engine that says what its script says, token by token."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from skyrl_kernel.counts import Count
from skyrl_kernel.errors import RunError, WeightSyncError
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray
from skyrl_kernel.testing.scripted.script import Ask, Script
from skyrl_kernel.testing.scripted.tokenizer import END, CharTokenizer

if TYPE_CHECKING:
    import torch


def token_logprobs(weight: float, tokens: IntArray) -> FloatArray:
    """[T] log-prob of each token on its own: the "model" that engine and trainer share.

    Between -2 and -1, and another for another weight.
    """
    logprobs: FloatArray = (-1 - 1 / (1 + np.exp(-weight * (tokens % 7 + 1)))).astype(np.float32)
    return logprobs


class ScriptedEngine:
    """Keeps the `skyrl_kernel.protocols.Engine` protocol.

    A reply is cut after ``max_tokens`` or behind a stop string; one that fits is
    ended by `END`. Each
    token is tagged with the version of the weights at the moment it was
    "sampled", so a completion that a weight update overtakes carries several.

    Args:
        script: Says what is replied, and how fast.
    """

    def __init__(self, script: Script) -> None:
        self.lockstep = script.lockstep
        self.version = 0
        self.weight = 0.0
        self.requests: list[GenerateRequest] = []
        """Every request so far, in the order of arrival."""
        self.calls: list[int] = []
        """Requests of each call of `generate`."""
        self._script = script
        self._tokenizer = CharTokenizer()
        self._going = asyncio.Event()
        self._going.set()
        self._aborts = 0
        self._begun: int | None = None
        self._received: float | None = None
        self._asleep: set[str] = set()

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order.

        Raises:
            RunError: It sleeps.
        """
        self._refuse_asleep("kv_cache")
        self.calls.append(len(requests))
        return list(await asyncio.gather(*(self._complete(request) for request in requests)))

    async def _complete(self, request: GenerateRequest) -> Completion:
        ask = Ask(
            text=self._tokenizer.decode(request.tokens),
            number=len(self.requests),
            seed=request.seed,
            version=self.version,
            sampling=request.sampling,
        )
        self.requests.append(request)
        self._script.note(f"ask {ask.number}")
        reply = self._script.reply(ask)
        stops = [reply.index(stop) + len(stop) for stop in request.sampling.stop if stop in reply]
        wanted = self._tokenizer.encode(reply[: min(stops)] if stops else reply)
        if not stops:
            wanted = np.append(wanted, np.int32(END))
        finish: Literal["stop", "length", "abort"] = "stop"
        if len(wanted) > request.sampling.max_tokens:
            wanted, finish = wanted[: request.sampling.max_tokens], "length"
        pause_s = self._script.latency_s(ask) / len(wanted)
        versions: list[int] = []
        logprobs: list[FloatArray] = []
        aborts = self._aborts
        for place in range(len(wanted)):
            await asyncio.sleep(pause_s)
            await self._going.wait()
            if self._aborts > aborts:
                finish = "abort"
                break
            versions.append(self.version)
            logprobs.append(token_logprobs(self.weight, wanted[place : place + 1]))
        self._script.note(f"answer {ask.number}")
        return Completion(
            tokens=wanted[: len(versions)],
            logprobs=np.concatenate(logprobs) if logprobs else np.zeros(0, dtype=np.float32),
            versions=np.array(versions, dtype=np.int32),
            finish_reason=finish,
        )

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob of each token; 0 at index 0. The temperature changes nothing here.

        Raises:
            RunError: It sleeps.
        """
        self._refuse_asleep("kv_cache")
        return [row_logprobs(self.weight, row) for row in rows]

    async def abort(self) -> None:
        """End running requests at their next token, paused ones at once."""
        self._aborts += 1
        if not self._going.is_set():
            self._going.set()
            await asyncio.sleep(0)
            self._going.clear()

    async def pause(self) -> None:
        """Stop before the next token."""
        self._going.clear()

    async def resume(self) -> None:
        """Go on."""
        self._going.set()

    async def forget_cache(self) -> None:
        """There is none; note that it was asked."""
        self._script.note("forget")

    async def sleep(self, level: int) -> None:
        """Hold nothing; at level 2 the weight is NaN until another comes."""
        self._script.note(f"sleep {level}")
        self._asleep = {"weights", "kv_cache"}
        if level == 2:
            self.weight = math.nan

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Hold it again.

        Raises:
            RunError: The cache was to come before the weights.
        """
        self._script.note(f"wake {what}")
        if what == "kv_cache":
            self._refuse_asleep("weights")
        self._asleep.discard(what)

    def _refuse_asleep(self, what: str) -> None:
        if what in self._asleep:
            raise RunError(f"the scripted engine sleeps: it has no memory for {what}")

    async def begin_update(self, version: int) -> None:
        """Get ready; an update begun before is forgotten.

        Raises:
            WeightSyncError: The weights are newer.
        """
        self._begun = self._received = None
        if version < self.version:
            raise WeightSyncError(f"version {version} was begun after version {self.version}")
        self._begun = version

    async def apply_update(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Receive the one number.

        Raises:
            RunError: It sleeps.
            WeightSyncError: No update was begun, or the tensor is another.
        """
        self._refuse_asleep("weights")
        if self._begun is None:
            raise WeightSyncError("weights arrived before begin_update")
        for name, value in weights:
            if name != "weight":
                self._begun = None
                raise WeightSyncError(f"a tensor '{name}' arrived; this model has: weight")
            number: Any = value
            self._received = float(number[0])

    async def finish_update(self, version: int) -> None:
        """Commit.

        Raises:
            WeightSyncError: Nothing arrived, or ``version`` is not the one begun.
        """
        begun, received = self._begun, self._received
        self._begun = self._received = None
        if begun != version:
            raise WeightSyncError(f"version {version} was finished, but {begun} was begun")
        if received is None:
            raise WeightSyncError(
                f"version {version} was finished, but the tensor 'weight' is missing"
            )
        self.weight, self.version = received, version
        self._script.note(f"sync {version}")

    async def close(self) -> None:
        """End running requests."""
        await self.abort()


def row_logprobs(weight: float, row: IntArray) -> FloatArray:
    """[T] `token_logprobs`, 0 at index 0."""
    logprobs = token_logprobs(weight, row)
    logprobs[:1] = 0
    return logprobs


class CountingEngine(ScriptedEngine):
    """A `ScriptedEngine` that keeps the `skyrl_kernel.protocols.Counts` protocol too.

    It counts ``requests`` and their mean number of ``prompt_tokens``, and tells the ``seconds`` that
    it was told, if there were any.
    """

    _counted = 0

    async def counts(self, seconds: float) -> dict[str, Count]:
        """Since the call before."""
        lengths = [len(one.tokens) for one in self.requests[self._counted :]]
        self._counted = len(self.requests)
        found = {"requests": Count(value=float(len(lengths)))}
        if lengths:
            mean = sum(lengths) / len(lengths)
            found["prompt_tokens"] = Count(value=mean, weight=float(len(lengths)))
        return found | ({"seconds": Count(value=seconds)} if seconds else {})
