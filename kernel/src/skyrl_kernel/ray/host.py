"""One engine: an actor. Its methods are async, so that it generates while weights arrive."""

import contextlib
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Literal

from skyrl_kernel.counts import Count
from skyrl_kernel.errors import (
    CapabilityError,
    FailureKind,
    HookError,
    PluginError,
    TrajectoryError,
    WeightSyncError,
)
from skyrl_kernel.protocols import Counts, Engine, Forgets, Served, Sleeps, Starts, Streams
from skyrl_kernel.ray.member import Member
from skyrl_kernel.ray.packets import Completions, Requests, Rows
from skyrl_kernel.ray.parcels import Parcel, tensors
from skyrl_kernel.recipe import EngineRecipe
from skyrl_kernel.records import GenerateRequest, Piece


class Host(Member[EngineRecipe]):
    """Makes an engine from a recipe, and passes calls on to it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._engine: Engine | None = None

    async def make(self, recipe: bytes, environment: Mapping[str, str]) -> bool:
        """Make the engine and wait until it may be asked; whether it counts its work: see `Counts`."""
        os.environ.update(environment)
        with self._named("make_engine"):
            made_by = self._read(recipe)
            if missing := made_by.missing():
                raise CapabilityError("\n".join(missing))
            self._engine = made_by.make()
            if isinstance(self._engine, Starts):
                await self._engine.started()
        return isinstance(self._engine, Counts)

    async def generate(self, requests: Requests) -> Completions:
        """See `Engine.generate`.

        Raises:
            TrajectoryError: The engine raised something of its own, which costs these requests.
        """
        with self._costs_requests("generate"):
            return Completions.of(await self._made.generate(requests.unpack()))

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See `Streams`; asked of an engine that offers it. Raises as `generate`."""
        assert isinstance(self._made, Streams), "asked of engines that offer it"
        with self._costs_requests("stream"):
            async with contextlib.aclosing(self._made.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece

    @contextlib.contextmanager
    def _costs_requests(self, method: str) -> Iterator[None]:
        try:
            with self._named(method):
                yield
        except PluginError as error:
            raise TrajectoryError(FailureKind.INFRASTRUCTURE, str(error), error.plugin) from error

    async def logprobs(self, rows: Rows, temperature: float) -> Rows:
        """See `Engine.logprobs`."""
        with self._named("logprobs"):
            return Rows.of(await self._made.logprobs(rows.unpack(), temperature=temperature))

    async def counts(self, seconds: float) -> Mapping[str, Count]:
        """See `Counts`; asked of an engine that counts."""
        with self._named("counts"):
            assert isinstance(self._made, Counts), "so `make` has said"
            return await self._made.counts(seconds)

    async def begin_update(self, version: int) -> None:
        """See `Engine.begin_update`."""
        with self._named("begin_update"):
            await self._made.begin_update(version)

    async def receive(self, parcel: Parcel | None) -> None:
        """Some of the weights: `Engine.apply_update`."""
        with self._named("apply_update"):
            await self._made.apply_update(tensors(parcel or []))

    async def finish_update(self, version: int) -> int:
        """See `Engine.finish_update`; the version that the engine says it has."""
        with self._named("finish_update"):
            await self._made.finish_update(version)
            return self._made.version

    async def addresses(self) -> list[str]:
        """See `Served`.

        Raises:
            HookError: The engine is none.
        """
        return list(self._served.addresses)

    async def hold(self) -> None:
        """See `Served`."""
        with self._named("hold"):
            await self._served.hold()

    async def adopt(self, version: int) -> int:
        """See `Served`; the version that the engine says it has."""
        with self._named("adopt"):
            try:
                await self._served.adopt(version)
            except WeightSyncError as error:
                raise WeightSyncError(f"{self._process}: {error}") from error
            return self._made.version

    @property
    def _served(self) -> Served:
        if isinstance(self._made, Served):
            return self._made
        assert self._recipe is not None, "it was made from one"
        raise HookError(
            f"the engine '{self._recipe.name}' offers 'served' and has no addresses, or no method adopt; "
            "see skyrl_kernel.protocols.Served"
        )

    async def abort(self) -> None:
        """See `Engine.abort`."""
        with self._named("abort"):
            await self._made.abort()

    async def pause(self) -> None:
        """See `Engine.pause`."""
        with self._named("pause"):
            await self._made.pause()

    async def resume(self) -> None:
        """See `Engine.resume`."""
        with self._named("resume"):
            await self._made.resume()

    async def forget_cache(self) -> None:
        """See `Forgets`."""
        assert isinstance(self._made, Forgets), "asked of engines that offer it"
        with self._named("forget_cache"):
            await self._made.forget_cache()

    async def sleep(self, level: int) -> None:
        """See `Sleeps`."""
        assert isinstance(self._made, Sleeps), "asked of engines that offer it"
        with self._named("sleep"):
            await self._made.sleep(level)

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """See `Sleeps`."""
        assert isinstance(self._made, Sleeps), "asked of engines that offer it"
        with self._named("wake"):
            await self._made.wake(what)

    async def close(self) -> None:
        """See `Engine.close`."""
        if self._engine is not None:
            with self._named("close"):
                await self._engine.close()

    @property
    def _made(self) -> Engine:
        assert self._engine is not None, "the runtime calls `make` first"
        return self._engine
