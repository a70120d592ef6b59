"""The servers of one engine, asked all together."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skyrl_vllm.client import Client, Refused, ServerError
from skyrl_vllm.server import Server


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """Seconds after which a call has failed."""

    start_s: float = 600.0
    """Of a server, until it is ready."""
    request_s: float = 3600.0
    """Of one completion, with the wait for its turn."""
    update_s: float = 600.0
    """Of one call that an update consists of."""
    control_s: float = 60.0
    """Of everything else: pause, resume, abort."""


class Fleet:
    """One or more servers with the same model.

    Args:
        servers: Started by this run, and ended with it; or addresses of those that are not.
        connections: Most requests to one server at a time; more wait here.
        deadlines: See there.
    """

    def __init__(
        self,
        servers: Sequence[Server | str],
        *,
        connections: int = 512,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.deadlines = deadlines or Deadlines()
        self.servers = tuple(servers)
        self.clients = tuple(
            Client(one.url, connections=connections, gone=one.gone)
            if isinstance(one, Server)
            else Client(one, connections=connections)
            for one in servers
        )

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
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    async def order(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Tell every server something that it must be able to do.

        Raises:
            ServerError: One cannot, or is gone.
        """
        try:
            await self.ask(path, body, timeout_s=self.deadlines.control_s)
        except (Refused, TimeoutError) as error:
            raise ServerError(f"{self} failed in {path}: {error}") from error

    async def close(self) -> None:
        """Close the connections, and end what this run started."""
        for client in self.clients:
            await client.close()
        own = [one for one in self.servers if isinstance(one, Server)]
        await asyncio.gather(*(asyncio.to_thread(one.close) for one in own))
