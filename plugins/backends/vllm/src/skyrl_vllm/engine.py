"""The kernel's engine protocol in vLLM's requests."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from skyrl_kernel.counts import Count
from skyrl_kernel.errors import RunError, WeightSyncError
from skyrl_kernel.probe import Precision, difference
from skyrl_kernel.progress import say
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray, Piece
from skyrl_vllm.adapters import NAME as ADAPTER
from skyrl_vllm.attached import Needs
from skyrl_vllm.client import Client, ServerError
from skyrl_vllm.counters import Counters
from skyrl_vllm.fleet import Deadlines, Fleet
from skyrl_vllm.requests import Requests, together
from skyrl_vllm.server import Server
from skyrl_vllm.transports import Transport
from skyrl_vllm.transports.files import Files
from skyrl_vllm.updates import Updates, stored_shapes

if TYPE_CHECKING:
    import torch

_MAX_SCORES = 2**24
"""Log-probs in one answer; a temperature other than 1 needs those of the whole vocabulary."""


class VllmEngine:
    """Keeps the `skyrl_kernel.protocols.Engine` protocol, with one or more vLLM servers.

    Args:
        servers: Each started by this run, and ended with it; or the address of one that is not.
        model: The directory that the servers have their first weights from: names and
            shapes of an update are checked with it.
        router: Address that passes completions on to the servers; None spreads them.
        max_rows: Most completions of one server at a time.
        precision: That the servers compute in: how far two may differ by rounding.
        is_salted: Whether a cached prefix is of one policy version, by its salt; otherwise the
            cache is emptied at every update.
        needs: What servers that are not this run's must be; None asks nothing of them.
        takes_adapters: Whether an update brings an adapter alone, on the weights of ``model``; the
            servers were started for it.
        deadlines: How long each kind of request may take.
    """

    lockstep = False

    def __init__(
        self,
        servers: Server | str | Sequence[Server | str],
        model: Path,
        *,
        router: str | None = None,
        max_rows: int = 512,
        precision: Precision = "float32",
        is_salted: bool = True,
        needs: Needs | None = None,
        takes_adapters: bool = False,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.version = 0
        self._needs = needs
        self._precision = precision
        self._is_salted = is_salted
        self._fleet = Fleet(
            [servers] if isinstance(servers, (Server, str)) else servers,
            router=router,
            connections=max_rows,
            deadlines=deadlines,
        )
        self._requests = Requests(self._fleet, lambda: self.version, is_salted=is_salted)
        self._expected = stored_shapes(model)
        self._make_transport: Callable[[], Transport] = Files
        self._updates = Updates(self._fleet, Files(), self._expected, takes_adapters=takes_adapters)
        self._counters = Counters(self._fleet.clients)
        self._ready: asyncio.Task[None] | None = None
        self._is_paused = False
        self._asleep: set[str] = set()

    @property
    def deadlines(self) -> Deadlines:
        """Of every call."""
        return self._fleet.deadlines

    # --- generation --------------------------------------------------------------------

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order.

        Prompts that begin alike share what vLLM's prefix cache has of them, within
        one policy version.

        Raises:
            ValueError: A request has no tokens.
            TrajectoryError: The server refused a request, or gave no answer in time.
            ServerError: The server is gone.
        """
        _refuse_empty(requests)
        if not requests:
            return []
        self._refuse_asleep()
        await self._connected()
        return await together([self._complete(request) for request in requests])

    async def _complete(self, request: GenerateRequest) -> Completion:
        return await self._requests.complete(request, self._model())

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The completion as it is sampled, the same that `generate` would return.

        Closing the iterator closes the connection, and the server ends the request.

        Raises:
            ValueError: As in `generate`; so are the others.
        """
        _refuse_empty([request])
        self._refuse_asleep()
        await self._connected()
        asked = self._requests.stream(request, self._model())
        async with aclosing(asked) as pieces:
            async for piece in pieces:
                yield piece

    def _model(self) -> str | None:
        """Which one a request is for: the one with the adapter, as soon as there is one."""
        return ADAPTER if self._updates.has_adapter else None

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0.

        vLLM scores given tokens at temperature 1 only. Others are computed here
        from the log-probs of the whole vocabulary, so such rows must be short.
        Every server scores every row: what asks is the check after a sync, and each
        of them has weights of its own.

        Raises:
            ValueError: Too many log-probs would have to be sent.
            TrajectoryError: A server refused a row, or gave no answer in time.
            WeightSyncError: Two servers do not have the same weights.
        """
        if temperature not in (0, 1):
            self._refuse_long(max(map(len, rows), default=0))
        self._refuse_asleep()
        await self._connected()
        scored = await together(
            [
                together([self._score(one, row, temperature) for row in rows])
                for one in self._fleet.clients
            ]
        )
        for client, other in zip(self._fleet.clients, scored, strict=True):
            self._refuse_other_weights(client, scored[0], other)
        scores: list[FloatArray] = scored[0]
        return scores

    def _refuse_other_weights(
        self, client: Client, first: Sequence[FloatArray], other: Sequence[FloatArray]
    ) -> None:
        if apart := difference(first, other, self._precision):
            raise WeightSyncError(
                f"the vLLM servers at {self._fleet.clients[0].url} and {client.url} both say that they "
                f"have policy version {self.version}, and differ by {apart}: they do not have the same weights"
            )

    def _refuse_long(self, tokens: int) -> None:
        vocabulary = max(
            (shape[0] for shape in (self._expected or {}).values() if shape), default=0
        )
        if tokens * vocabulary > _MAX_SCORES:
            raise ValueError(
                f"a row of {tokens} tokens was to be scored at another temperature than 1, for which "
                f"{tokens * vocabulary} log-probs would be sent; at most {_MAX_SCORES} are"
            )

    async def _score(self, client: Client, row: IntArray, temperature: float) -> FloatArray:
        return await self._requests.score(client, row, temperature, self._model())

    async def counts(self, seconds: float) -> dict[str, Count]:
        """See `skyrl_kernel.protocols.Counts`: what the servers count, whoever asked them."""
        await self._connected()
        return await self._counters.since(seconds)

    # --- control -----------------------------------------------------------------------

    async def abort(self) -> None:
        """End all running requests; returns when they have ended.

        Raises:
            ServerError: They have not within `Deadlines.control_s`.
        """
        await self._requests.abort()

    async def pause(self) -> None:
        """Stop computing after the current step; requests stay, with what they have computed."""
        await self._connected()
        # Before it is done: one server of several, or the caller, may not wait for it.
        self._is_paused = True
        await self._requests.hold("pause")
        await self._fleet.order("/pause?mode=keep&clear_cache=false")

    async def resume(self) -> None:
        """Go on."""
        await self._connected()
        await self._fleet.order("/resume")
        self._is_paused = False
        self._requests.release("pause")

    async def sleep(self, level: int) -> None:
        """Give back the GPU memory of weights and cache; level 1 keeps the weights in the machine's.

        So does level 2 where updates bring adapters alone, which need the weights below them. Running
        requests are aborted. The CPU build keeps its memory.
        """
        level = 1 if self._updates.takes_adapters else level
        await self._connected()
        self._asleep = {"weights", "kv_cache"}  # also where only some of several servers sleep
        await self._move_memory(f"/sleep?level={level}")

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take the memory again; with both, the server goes on computing."""
        await self._move_memory(f"/wake_up?tags={what}")
        self._asleep.discard(what)

    async def _move_memory(self, path: str) -> None:
        await self._fleet.order(path, timeout_s=self.deadlines.update_s)

    def _refuse_asleep(self) -> None:
        """The server would let a request wait until it is woken.

        Raises:
            ServerError: It sleeps.
        """
        if self._asleep:
            raise ServerError(f"{self._fleet} sleeps, and was asked to compute; wake it first")

    async def close(self) -> None:
        """End running requests; end the server, if this run started it."""
        if self._ready is not None:
            self._ready.cancel()
        try:
            await self._updates.forget()
            if not self._fleet.is_gone():
                if self._requests:
                    await self.abort()
                if self._asleep:
                    await self._move_memory("/wake_up")
                if self._is_paused:
                    await self.resume()
        except (RunError, TimeoutError):
            pass  # it is about to end anyway
        finally:
            self._updates.close()
            await self._fleet.close()

    # --- weights -----------------------------------------------------------------------

    def use_transport(self, make: Callable[[], Transport]) -> None:
        """Bring weights through another transport from the next update on."""
        if make is self._make_transport:
            return
        self._make_transport = make
        self._updates.change(make())

    async def begin_update(self, version: int) -> None:
        """Get ready for the weights of ``version``; an update begun before is forgotten.

        Raises:
            WeightSyncError: The server refused.
            CapabilityError: The transport cannot reach it.
        """
        await self._connected()
        await self._updates.begin(version)

    async def apply_update(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Bring some or all tensors on their way; the server computes on meanwhile.

        Raises:
            WeightSyncError: No update was begun, or a tensor does not fit. The update
                is over; the old weights stay.
        """
        await self._updates.apply(weights)

    async def finish_update(self, version: int) -> None:
        """Commit, between two steps of the server.

        Raises:
            WeightSyncError: Tensors are missing, ``version`` is not the one begun, or the
                server refused. The update is over; the message says which weights it has.
        """
        await self._updates.arrive(version)
        if self._updates.takes_adapters and not self._updates.has_adapter and self._requests:
            await self._updates.forget()
            raise WeightSyncError(
                f"policy version {version} brings the first adapter, and {len(self._requests)} requests run "
                "that were begun without one and would end without it; the engine keeps its old weights. "
                "Bring the first adapter before the first request"
            )
        try:
            await self._requests.hold("commit")
            await self._commit(version)
        except ServerError as error:
            raise WeightSyncError(f"policy version {version} was lost: {error}") from error
        finally:
            self._requests.release("commit")

    async def _commit(self, version: int) -> None:
        """Load what has arrived while nothing computes.

        Raises:
            WeightSyncError: Nobody knows which weights there are; the server stays paused.
            ServerError: A server is gone, or could not pause or go on.
        """
        # A sleeping server computes nothing, and would without a cache if it were resumed.
        was_paused = self._is_paused or bool(self._asleep) or await self._is_held()
        try:
            if not was_paused:
                await self.pause()
            await self._updates.load()
            self.version = version
            if not self._is_salted and not self._asleep:
                await self.forget_cache()
        finally:
            # Not where nobody knows which weights there are: nothing may be sampled from them.
            if not was_paused and not self._updates.is_broken:
                await self.resume()

    async def _is_held(self) -> bool:
        """Whether somebody else has paused servers that are not this engine's own, or let them sleep."""
        if self._fleet.own:
            return False
        return all(one.get("is_paused") for one in await self._fleet.look("/is_paused"))

    @property
    def addresses(self) -> list[str]:
        """Of every server."""
        return [client.url for client in self._fleet.clients]

    async def hold(self) -> None:
        """See `skyrl_kernel.protocols.Served`."""
        await self._requests.hold("adopt")

    async def adopt(self, version: int) -> None:
        """Go on with the weights of ``version``, which another process has brought.

        Raises:
            WeightSyncError: A server says that it has others.
            ServerError: One does not say.
        """
        found = [str(one["weight_version"]) for one in await self._fleet.look("/weight_info")]
        for url, its in zip(self.addresses, found, strict=True):
            if its != str(version):
                raise WeightSyncError(
                    f"the vLLM server at {url} says that it has policy version {its}, and another process "
                    f"was to bring it version {version}"
                )
        self._updates.adopt(version)
        self.version = version
        self._requests.release("adopt")

    async def forget_cache(self) -> None:
        """Drop all keys and values; requests in flight compute theirs again with the weights of now.

        Raises:
            ServerError: A server could not.
        """
        await self._connected()
        await self._fleet.order("/reset_prefix_cache?reset_running_requests=true")

    # --- the server --------------------------------------------------------------------

    async def _connected(self) -> None:
        """Wait for the servers once; whoever comes meanwhile waits too."""
        loop = asyncio.get_running_loop()
        if self._ready is None or self._ready.get_loop() is not loop:
            self._ready = loop.create_task(self._connect())
        await asyncio.shield(self._ready)

    async def started(self) -> None:
        """Return when every server may be asked.

        Raises:
            ServerError: One has ended, was not ready in time, or was started otherwise than it must be.
        """
        await self._connected()

    async def _connect(self) -> None:
        await self._fleet.wait_until_ready()
        try:
            if self._needs is not None:
                for note in await self._fleet.check(self._needs):
                    say(f"warning: {note}", style="yellow")
            await self._fleet.order("/update_weight_version", {"new_version": str(self.version)})
            await self._fleet.order("/resume")  # a run that was killed in a pause has left it so
        except ServerError as error:
            if self._fleet.own:
                raise
            raise ServerError(
                f"{error}. generator.inference_engine.external_server_urls names servers that run already, "
                "where skyrl-vllm is installed"
            ) from error


def _refuse_empty(requests: Sequence[GenerateRequest]) -> None:
    if any(len(request.tokens) == 0 for request in requests):
        raise ValueError("a request has no tokens; every prompt needs at least one")
