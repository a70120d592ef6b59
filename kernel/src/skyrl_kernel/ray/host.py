"""One engine: an actor. Its methods are async, so that it generates while weights arrive."""

import contextlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from skyrl_kernel.errors import (
    CapabilityError,
    FailureKind,
    PluginError,
    SkyrlError,
    TrajectoryError,
)
from skyrl_kernel.logs import get_logger
from skyrl_kernel.protocols import Engine, Forgets, Sleeps, Starts
from skyrl_kernel.ray.attest import Report, report
from skyrl_kernel.ray.begin import begin
from skyrl_kernel.ray.packets import Rows
from skyrl_kernel.ray.parcels import Parcel, tensors
from skyrl_kernel.recipe import EngineRecipe
from skyrl_kernel.records import Completion, GenerateRequest

log = get_logger(__name__)


class Host:
    """Makes an engine from a recipe, and passes calls on to it.

    Args:
        name: For messages, such as ``engine 1``.
    """

    def __init__(self, name: str) -> None:
        self._name = self._process = name
        self._recipe: EngineRecipe | None = None
        self._engine: Engine | None = None

    async def begin(self, folder: Path | None) -> str:
        """See `skyrl_kernel.ray.begin`."""
        machine = begin(self._name, folder)
        self._process = f"{self._name} on {machine}"
        return machine

    async def report(self, lock: Sequence[Mapping[str, Any]]) -> Report:
        """What this process has of the plugins of the run."""
        return report(lock)

    async def make(self, recipe: bytes) -> bool:
        """Make the engine and wait until it may be asked; whether it computes in lockstep."""
        with self._named("make_engine"):
            self._recipe = pickle.loads(recipe)  # the controller's, of this run
            assert self._recipe is not None
            self._recipe.process = self._process
            if missing := self._recipe.missing():
                raise CapabilityError("\n".join(missing))
            self._engine = self._recipe.make()
            if isinstance(self._engine, Starts):
                await self._engine.started()
        return self._engine.lockstep

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """See `Engine.generate`.

        Raises:
            TrajectoryError: The engine raised something of its own, which costs these requests.
        """
        try:
            with self._named("generate"):
                return await self._made.generate(requests)
        except PluginError as error:
            raise TrajectoryError(FailureKind.INFRASTRUCTURE, str(error), error.plugin) from error

    async def logprobs(self, rows: Rows, temperature: float) -> Rows:
        """See `Engine.logprobs`."""
        with self._named("logprobs"):
            return Rows.of(await self._made.logprobs(rows.unpack(), temperature=temperature))

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

    @contextlib.contextmanager
    def _named(self, hook: str) -> Iterator[None]:
        """Give an exception the name of its plugin, and of this process, while there is a traceback."""
        try:
            yield
        except SkyrlError:
            raise
        except Exception as error:
            log.exception("failed", hook=hook)
            if self._recipe is None:
                raise
            raise self._recipe.manager.attribute(error, hook, step=None) from error
