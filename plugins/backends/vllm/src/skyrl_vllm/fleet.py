"""The servers of one engine, asked all together."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skyrl_kernel.load_balancing import LoadBalancer
from skyrl_kernel.progress import say
from skyrl_kernel.records import IntArray
from skyrl_vllm.attached import Needs, check
from skyrl_vllm.client import Client, Refused, ServerError
from skyrl_vllm.server import Server

SAY_EVERY_S = 10.0
"""Between two lines that say that servers load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """Seconds after which a call has failed."""

    start_s: float = 600.0
    """Of a server, until it is ready."""
    request_s: float = 3600.0
    """Of one completion, from its turn on."""
    update_s: float = 600.0
    """Of one call that an update consists of, and of one that moves memory."""
    cancel_s: float = 30.0
    """Of taking back an update that failed: a server that hung in it may hang in this too."""
    control_s: float = 60.0
    """Of everything else: pause, resume, abort."""


class Fleet:
    """One or more servers with the same model.

    Args:
        servers: Started by this run, and ended with it; or addresses of those that are not.
        router: Address that passes completions on to them; None sends each to a server
            that `skyrl_kernel.load_balancing` chooses.
        connections: Most completions of one server at a time; more wait here.
        deadlines: How long each kind of request may take.
    """

    def __init__(
        self,
        servers: Sequence[Server | str],
        *,
        router: str | None = None,
        connections: int = 512,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.deadlines = deadlines or Deadlines()
        self.own = tuple(one for one in servers if isinstance(one, Server))
        """Those that this run started."""
        self.clients = tuple(
            Client(one.url, connections=connections, gone=one.gone)
            if isinstance(one, Server)
            else Client(one, connections=connections)
            for one in servers
        )
        self._router = (
            None if router is None else Client(router, connections=connections * len(servers))
        )
        self._lanes = self.clients if self._router is None else (self._router,)
        self._balancer = LoadBalancer(len(self._lanes))
        self._lost: ServerError | None = None
        self._looking = asyncio.Lock()

    def __str__(self) -> str:
        urls = ", ".join(client.url for client in self.clients)
        return f"the vLLM server{'s' if len(self.clients) > 1 else ''} at {urls}"

    async def ask(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> list[Any]:
        """What each server answers to one POST; all are heard before a failure is raised.

        Raises:
            Refused: One said no.
            ServerError: One is gone.
            TimeoutError: One gave no answer within ``timeout_s``.
        """
        answers = await asyncio.gather(
            *(client.ask("POST", path, body, timeout_s=timeout_s) for client in self.clients),
            return_exceptions=True,
        )
        failures = [one for one in answers if isinstance(one, BaseException)]
        for failure in failures:
            if isinstance(failure, ServerError):  # what the others say may come of it
                self._lost = self._lost or failure
                raise failure
        if failures:
            raise failures[0]
        return answers

    async def order(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Tell every server something that it must be able to do.

        Args:
            path: With its query.
            body: JSON-able.
            timeout_s: Longest wait; default: `Deadlines.control_s`.

        Raises:
            ServerError: One cannot, or is gone.
        """
        with _must(path):
            await self.ask(path, body, timeout_s=timeout_s or self.deadlines.control_s)

    async def look(self, path: str) -> list[Any]:
        """What each server says of itself.

        Raises:
            ServerError: One does not say, or is gone.
        """
        timeout_s = self.deadlines.control_s
        asked = (client.ask("GET", path, timeout_s=timeout_s) for client in self.clients)
        with _must(path):
            return await asyncio.gather(*asked)

    async def lives(self) -> bool:
        """Whether every server answers that it is well; who asks at the same time waits for one answer."""
        async with self._looking:
            if self._lost is None:
                try:
                    await self.look("/health")
                except ServerError as error:
                    self._lost = error
        return self._lost is None

    async def check(self, needs: Needs) -> list[str]:
        """See `skyrl_vllm.attached.check`; of every server."""
        asked = [check(one, needs, self.deadlines.control_s) for one in self.clients]
        return [note for notes in await asyncio.gather(*asked) for note in notes]

    @contextlib.contextmanager
    def lane(self, prompt: IntArray) -> Iterator[Client]:
        """Whom to ask for a completion of ``prompt``; the request counts as running there.

        Raises:
            ServerError: One was found to be gone, which ends the run: nothing more is asked.
        """
        if self._lost is not None:
            raise ServerError(str(self._lost)) from self._lost
        place = self._balancer.acquire(prompt)
        try:
            yield self._lanes[place]
        except ServerError as error:
            self._lost = self._lost or error
            raise
        finally:
            self._balancer.release(place)

    async def wait_until_ready(self) -> None:
        """Return when all that this run started answer.

        Raises:
            ServerError: One has ended, or is not ready within `Deadlines.start_s`.
        """
        if not self.own:
            return
        waits = [
            asyncio.create_task(one.wait_until_ready(self.deadlines.start_s)) for one in self.own
        ]
        telling = asyncio.create_task(self._tell(waits))
        try:
            await asyncio.gather(*waits)
        finally:
            for task in (*waits, telling):
                task.cancel()
            await asyncio.gather(*waits, telling, return_exceptions=True)

    async def _tell(self, waits: "Sequence[asyncio.Task[None]]") -> None:
        """Say every now and then that servers load, which takes most of a minute or more."""
        began = time.monotonic()
        logs = ", ".join(str(one.log) for one in self.own)
        while True:
            await asyncio.sleep(SAY_EVERY_S)
            ready = sum(wait.done() for wait in waits)
            say(
                f"vLLM loads: {ready} of {len(waits)} servers ready after "
                f"{time.monotonic() - began:.0f} s; log: {logs}"
            )

    def is_gone(self) -> bool:
        """True if a server that this run started has ended."""
        return any(one.gone() for one in self.own)

    async def close(self) -> None:
        """Close the connections, and end what this run started."""
        for client in {*self.clients, *self._lanes}:
            await client.close()
        await asyncio.gather(*(asyncio.to_thread(one.close) for one in self.own))


@contextlib.contextmanager
def _must(path: str) -> Iterator[None]:
    """A server that refuses ``path``, or does not answer in time, is of no more use."""
    try:
        yield
    except Refused as error:
        raise ServerError(f"the vLLM server at {error.url} failed in {path}: {error}") from error
    except TimeoutError as error:
        raise ServerError(str(error)) from error
