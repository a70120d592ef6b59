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

from skyrl_kernel.errors import FailureKind, SkyrlError
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray, Piece
from skyrl_vllm import wire
from skyrl_vllm.client import Body, Client, Refused, ServerError
from skyrl_vllm.fleet import Fleet

_ABORT_EVERY_S = 0.1
"""Between two orders to abort: one that comes before its request is not remembered by the server."""


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
        self._may_go = asyncio.Event()
        self._may_go.set()

    def __len__(self) -> int:
        """How many completions are under way."""
        return len(self._running)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No completion is sent within, as the version of the weights that will sample it is not known.

        A server takes requests while it loads others, and computes them afterwards: with the salt of the
        old version they would find the prefix that the old weights have computed.
        """
        self._may_go.clear()
        try:
            yield
        finally:
            self._may_go.set()

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
        with self._begun(request, model) as (body, client):
            return wire.completion(await self._answer(client, body), version)

    async def stream(
        self, request: GenerateRequest, model: str | None
    ) -> AsyncGenerator[Piece, None]:
        """The completion as it is sampled; arguments and errors are those of `complete`."""
        parts: list[Piece] = []
        version = self._version()
        with self._begun(request, model, stream=True) as (body, client):
            asked = client.listen(wire.GENERATE, body, timeout_s=self._fleet.deadlines.request_s)
            async with self._typed(client), aclosing(asked) as events:
                async for event in events:
                    parts.append(wire.piece(event, parts, version))
                    yield parts[-1]

    async def score(
        self, client: Client, row: IntArray, temperature: float, model: str | None
    ) -> FloatArray:
        """[T] log-prob in nats of each token of ``row``, by one server; errors as in `complete`."""
        if len(row) < 2:
            return np.zeros(len(row), dtype=np.float32)
        body = wire.to_score(row, temperature) | _named(model)
        return wire.scores(await self._answer(client, body), row, temperature)

    async def abort(self) -> None:
        """End all completions under way; returns when they have ended.

        Raises:
            ServerError: They have not within `Deadlines.control_s`.
        """
        waiting = dict(self._running)
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
        body = partial(self._salted, wire.to_complete(request, name) | _named(model) | more)
        self._running[name] = asyncio.get_running_loop().create_future()
        try:
            with self._fleet.lane(request.tokens) as client:
                yield body, client
        finally:
            self._running.pop(name).set_result(None)

    async def _salted(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is sent: only now, as the weights may have changed while it waited for its turn."""
        await self._may_go.wait()
        if not self._is_salted:
            return body
        return {**body, "cache_salt": f"{self._name}-{self._version()}"}

    async def _answer(self, client: Client, body: Body) -> Any:
        """What a server says to one request."""
        async with self._typed(client):
            return await client.ask(
                "POST", wire.GENERATE, body, timeout_s=self._fleet.deadlines.request_s, queues=True
            )

    @asynccontextmanager
    async def _typed(self, client: Client) -> AsyncIterator[None]:
        """One failed request costs one trajectory."""
        try:
            yield
        except Refused as error:
            raise await self._why(client, error) from error
        except TimeoutError as error:
            raise wire.lost(FailureKind.TIMEOUT, str(error)) from error

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
