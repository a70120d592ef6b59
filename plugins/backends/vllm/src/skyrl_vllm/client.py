"""HTTP to one vLLM server: JSON in and out, a deadline on each call, errors that name the server."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from skyrl_kernel.errors import RunError

if TYPE_CHECKING:
    import aiohttp

Body = Mapping[str, Any] | Callable[[], Awaitable[Mapping[str, Any]]]
"""What is sent as JSON, or makes it when the request's turn has come."""
_SHOWN = 500
"""Characters of an answer that an error repeats."""
_ASKED, _ASKED_EVERY_S = 140, 0.05
"""How often and how soon a server that does not answer is looked at: its guard waits 5 s for engine
processes before it says that the server has ended."""


class ServerError(RunError):
    """The vLLM server is gone, or cannot be used as it was started."""


class Refused(Exception):
    """The server answered, and said no.

    Args:
        status: HTTP status.
        text: The answer.
        url: Of the server.
    """

    def __init__(self, status: int, text: str, url: str = "") -> None:
        super().__init__(status, text, url)
        self.status = status
        self.text = text
        self.url = url

    def __str__(self) -> str:
        return f"status {self.status}: {self.text[:_SHOWN]}"


class Client:
    """Connections to one server, made by the event loop that asks.

    Each request has one of its own: a server closes those that are idle, or on which it refused,
    and who computes meanwhile learns it only from the request that is lost with one.

    Args:
        url: Where it listens.
        connections: Most completions at a time; more wait here.
        gone: Says why the server is gone, if it is known to be.
    """

    def __init__(
        self, url: str, *, connections: int = 512, gone: Callable[[], str | None] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._connections = connections
        self._gone = gone
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(connections)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        timeout_s: float,
        queues: bool = False,
    ) -> Any:
        """The decoded answer; None if it is empty.

        Args:
            method: Of HTTP.
            path: Begins with a slash.
            body: JSON-able, or makes what is.
            timeout_s: Longest wait, from its turn on: before, those whose turn it is have theirs.
            queues: Whether it waits for its turn, as a completion. Orders do not: an abort
                that stood behind what it shall abort would come too late.

        Raises:
            Refused: The status is not 2xx.
            ServerError: The server cannot be reached, or its process has ended.
            TimeoutError: No whole answer within ``timeout_s``.
        """
        async with self._answered(method, path, body, timeout_s, queues) as answer:
            text = await answer.text()
            return await answer.json(content_type=None) if text else None

    async def read(self, path: str, *, timeout_s: float) -> str:
        """The answer to a GET, as it is.

        Raises:
            Refused: As in `ask`; so are the others.
        """
        async with self._answered("GET", path, None, timeout_s, False) as answer:
            return await answer.text()

    async def listen(self, path: str, body: Body, *, timeout_s: float) -> AsyncGenerator[Any, None]:
        """The decoded events of one answer to a POST, as they come; it waits for its turn.

        Closing the iterator closes the connection, which ends the request.

        Raises:
            Refused: The status is not 2xx, or an event says that it failed.
            ServerError: As in `ask`, or the answer broke off.
            TimeoutError: It did not end within ``timeout_s``.
        """
        async with self._answered("POST", path, body, timeout_s, True) as answer:
            async for line in answer.content:
                name, _, text = line.decode().strip().partition(": ")
                if name != "data":
                    continue
                if text == "[DONE]":
                    return
                event = json.loads(text)
                if "error" in event:
                    raise Refused(int(event["error"].get("code") or 500), text, self.url)
                yield event
        why = await self.reason() or "the answer broke off"
        raise ServerError(f"the vLLM server at {self.url} does not answer ({path}): {why}")

    @asynccontextmanager
    async def _answered(
        self,
        method: str,
        path: str,
        body: Body | None,
        timeout_s: float,
        queues: bool,
    ) -> "AsyncIterator[aiohttp.ClientResponse]":
        """An answer that was not refused; what fails while it is read has its type too."""
        import aiohttp

        session = self._connected()
        try:
            async with AsyncExitStack() as stack:
                if queues:
                    await stack.enter_async_context(self._turns)
                content = await body() if callable(body) else body
                answer = await stack.enter_async_context(
                    session.request(
                        method,
                        self.url + path,
                        json=content,
                        timeout=aiohttp.ClientTimeout(total=timeout_s),
                    )
                )
                if answer.status >= 300:
                    raise Refused(answer.status, await answer.text(), self.url)
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"the vLLM server at {self.url} gave no answer to {path} in {timeout_s:g} s"
                ) from error
            why = f"{type(error).__name__}: {error}"
            raise ServerError(
                f"the vLLM server at {self.url} does not answer ({path}): {await self.reason() or why}"
            ) from error

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()

    async def reason(self) -> str | None:
        """Why it is gone: connections of a process that was killed end before it has."""
        for _ in range(_ASKED if self._gone else 0):
            assert self._gone is not None
            if why := self._gone():
                return why
            await asyncio.sleep(_ASKED_EVERY_S)
        return None

    def _connected(self) -> "aiohttp.ClientSession":
        import aiohttp

        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._turns = asyncio.Semaphore(self._connections)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True), trust_env=False
            )
        return self._session
