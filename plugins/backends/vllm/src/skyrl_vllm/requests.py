"""Requests under way: whom each goes to, how all of them are aborted, and what a failed one costs."""

import asyncio
import itertools
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import numpy as np

from skyrl_kernel.errors import FailureKind, SkyrlError, TrajectoryError
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray, Piece
from skyrl_vllm import wire
from skyrl_vllm.client import Body, Client, Refused, ServerError
from skyrl_vllm.fleet import Fleet

_ABORT_EVERY_S = 0.1
"""Between two orders to abort: one that comes before its request is not remembered by the server."""


_UNSENT = Completion(
    tokens=np.zeros(0, np.int32),
    logprobs=np.zeros(0, np.float32),
    versions=np.zeros(0, np.int32),
    finish_reason="abort",
)
"""What comes of a request that was aborted before its turn."""


class _AbortedUnsentError(Exception):
    """A request was aborted before its turn."""


class Requests:
    """Asks servers for completions and scores, each completion under a name of its own.

    Args:
        fleet: The servers.
        version: The policy version that they have now.
        is_salted: Whether a cached prefix is of one policy version, by its salt.
    """

    def __init__(self, fleet: Fleet, version: Callable[[], int], *, is_salted: bool) -> None:
        self._fleet = fleet
        self._version = version
        self._is_salted = is_salted
        self._running: dict[str, asyncio.Future[None]] = {}
        self._names = itertools.count()
        self._name = uuid.uuid4().hex[:12]
        self._holds: set[str] = set()
        self._aborted: set[str] = set()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """How many completions are under way."""
        return len(self._running)

    async def hold(self, why: str) -> None:
        """Send no completion until `release`, as it is not known which weights will sample it.

        A server takes requests while it is paused and while others are loaded, and computes them
        afterwards: with the salt of the old version they would find the prefix that the old weights
        have computed. Those that run go on. Returns when the servers have what was sent before: their
        engines have answered a question that was asked after it. (A router may hand it on later.)

        Args:
            why: Of several reasons each is released by itself.

        Raises:
            ServerError: A server is gone; the hold stays.
        """
        self._holds.add(why)
        if self._running:
            await self._fleet.look("/is_paused")

    def release(self, why: str) -> None:
        """Undo `hold`; without one, nothing."""
        self._holds.discard(why)
        self._tell()

    def _tell(self) -> None:
        """Those that are held look whether they still are."""
        self._news.set()
        self._news = asyncio.Event()

    async def complete(self, request: GenerateRequest, model: str | None) -> Completion:
        """One completion.

        Args:
            request: Has tokens.
            model: The adapter's name where one is to be used; None is the model below it.

        Raises:
            TrajectoryError: The server refused it, or gave no answer in time.
            ServerError: The server is gone.
        """
        version = self._version()
        try:
            with self._begun(request, model) as (body, client):
                async with self._typed(client):
                    return wire.completion(await self._ask(client, body, queues=True), version)
        except _AbortedUnsentError:
            return _UNSENT

    async def stream(
        self, request: GenerateRequest, model: str | None
    ) -> AsyncGenerator[Piece, None]:
        """The completion as it is sampled; arguments and errors are those of `complete`."""
        parts: list[Piece] = []
        version = self._version()
        try:
            with self._begun(request, model, stream=True) as (body, client):
                asked = client.listen(
                    wire.GENERATE, body, timeout_s=self._fleet.deadlines.request_s
                )
                async with self._typed(client), aclosing(asked) as events:
                    async for event in events:
                        parts.append(wire.piece(event, parts, version))
                        yield parts[-1]
                if not parts or parts[-1].completion is None:
                    raise wire.lost(
                        FailureKind.INFRASTRUCTURE, "ended a stream without its completion"
                    )
        except _AbortedUnsentError:
            yield Piece(tokens=_UNSENT.tokens, logprobs=_UNSENT.logprobs, completion=_UNSENT)

    async def score(
        self, client: Client, row: IntArray, temperature: float, model: str | None
    ) -> FloatArray:
        """[T] log-prob in nats of each token of ``row``, by one server; errors as in `complete`."""
        if len(row) < 2:
            return np.zeros(len(row), dtype=np.float32)
        body = wire.to_score(row, temperature) | _named(model)
        # It waits for no turn here (and in the server for the next that ends): what asks is the check
        # after a sync, within the sync's deadline.
        async with self._typed(client):
            return wire.scores(await self._ask(client, body, queues=False), row, temperature)

    async def abort(self) -> None:
        """End all completions under way; returns when they have ended.

        Raises:
            ServerError: They have not within `Deadlines.control_s`.
        """
        waiting = dict(self._running)
        self._aborted |= waiting.keys()  # those that were not sent will not be
        self._tell()
        loop = asyncio.get_running_loop()
        deadline_s = self._fleet.deadlines.control_s
        until = loop.time() + deadline_s
        while waiting := {name: one for name, one in waiting.items() if not one.done()}:
            if loop.time() > until:
                raise ServerError(
                    f"{len(waiting)} requests to {self._fleet} still run "
                    f"{deadline_s:g} s after they were aborted"
                )
            await self._fleet.order(
                "/abort_requests", {"request_ids": [wire.REGISTERED + n for n in waiting]}
            )
            await asyncio.wait(waiting.values(), timeout=_ABORT_EVERY_S)

    @contextmanager
    def _begun(
        self, request: GenerateRequest, model: str | None, **more: bool
    ) -> Iterator[tuple[Body, Client]]:
        """What to ask and whom; `abort` knows of it until the block ends."""
        name = f"{self._name}-{next(self._names)}"
        body = partial(self._salted, name, wire.to_complete(request, name) | _named(model) | more)
        self._running[name] = asyncio.get_running_loop().create_future()
        try:
            with self._fleet.lane(request.tokens) as client:
                yield body, client
        finally:
            self._aborted.discard(name)
            self._running.pop(name).set_result(None)

    async def _salted(self, name: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is sent: only now, as the weights may have changed while it waited for its turn."""
        while self._holds and name not in self._aborted:
            await self._news.wait()
        if name in self._aborted:
            raise _AbortedUnsentError
        if not self._is_salted:
            return body
        return {**body, "cache_salt": f"{self._name}-{self._version()}"}

    async def _ask(self, client: Client, body: Body, *, queues: bool) -> Any:
        """What a server says to one request."""
        deadline_s = self._fleet.deadlines.request_s
        return await client.ask("POST", wire.GENERATE, body, timeout_s=deadline_s, queues=queues)

    @asynccontextmanager
    async def _typed(self, client: Client) -> AsyncIterator[None]:
        """One failed request costs one trajectory; a server with other weights than the run's costs the run.

        So does one that is gone; a connection that broke off, while all servers live, does not.
        """
        try:
            yield
        except ServerError as error:
            if not await self._fleet.lives():
                raise
            raise TrajectoryError(FailureKind.INFRASTRUCTURE, str(error), "vllm") from error
        except Refused as error:
            raise await self._why(client, error) from error
        except TimeoutError as error:
            raise TrajectoryError(FailureKind.TIMEOUT, str(error), "vllm") from error
        except wire.StartedAnewError as error:
            raise ServerError(
                f"the vLLM server at {client.url} was started anew while the run went on, and has the "
                "weights that it was started with instead of the run's. The same command goes on after the "
                "run's newest checkpoint, and brings the server its weights"
            ) from error

    async def _why(self, client: Client, error: Refused) -> SkyrlError:
        """A refusal costs one trajectory, unless it is the server's last word."""
        if error.status >= 500 and (why := await client.reason()):
            return ServerError(f"the vLLM server at {client.url} failed: {why}")
        return wire.lost(FailureKind.INFRASTRUCTURE, f"refused a request with {error}")


async def together(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All results in order; the first failure cancels the rest."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}
