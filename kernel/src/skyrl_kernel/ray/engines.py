"""What stands for one or more engines in the controller's process.

Requests of one call with the same prompt go to one engine, which computes the prompt once; which
one, `skyrl_kernel.load_balancing` says. Updates go to all, as one transaction.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import ray

from skyrl_kernel.counts import Count, joined
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.load_balancing import LoadBalancer
from skyrl_kernel.logs import get_logger
from skyrl_kernel.probe import Precision, difference
from skyrl_kernel.ray.calls import answer
from skyrl_kernel.ray.errors import Process, ProcessDied
from skyrl_kernel.ray.packets import Completions, Requests, Rows
from skyrl_kernel.ray.parcels import parcels
from skyrl_kernel.ray.trainer import Weights
from skyrl_kernel.ray.waits import together, waiting_for
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray, Piece

if TYPE_CHECKING:
    import torch

_Waiting = tuple[GenerateRequest, "asyncio.Future[Completion]"]

log = get_logger(__name__)


class RayEngines:
    """Keeps the `skyrl_kernel.protocols.Engine` protocol.

    It has the methods of `Streams`, `Forgets` and `Sleeps` too, for engines that offer them.

    Args:
        actors: Of `skyrl_kernel.ray.host.Host`, being made.
        names: Of each, for messages.
        made: References to whether each counts its work, which it says when it is made.
        batches: Whether requests of one moment are sent as one call: for engines that gain
            from nothing that comes later.
        lockstep: Whether the kernel hands over whole rounds, so that numbers repeat.
        precision: What rounding between engines with equal weights is measured with.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        names: Sequence[Process],
        made: Sequence[Any],
        *,
        batches: bool,
        lockstep: bool,
        precision: Precision = "float32",
    ) -> None:
        self.lockstep = lockstep
        self.version = 0
        self._actors, self._names, self._made = list(actors), list(names), list(made)
        self._counting = False
        self._batches = batches
        self._precision: Precision = precision
        self._balancer = LoadBalancer(len(actors))
        self._waiting: list[_Waiting] = []
        self._sending: set[asyncio.Task[None]] = set()
        self.attach: Callable[[], Awaitable[None]] | None = None
        """Called once, when all are made, awake and hold the first weights."""

    @property
    def names(self) -> list[Process]:
        """Of each, for messages."""
        return self._names

    async def started(self) -> None:
        """Return when all are made, and those who bring them weights are attached."""
        if self._made:
            with waiting_for(f"{together(self._names)} to load"):
                self._counting = any(await self._gather(self._made))
            self._made = []
            log.info("engines made")
        attach, self.attach = self.attach, None
        if attach is not None:
            await attach()

    # --- generation --------------------------------------------------------------------

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order."""
        if not self._batches or self.lockstep:
            found = await self._share(requests)
            for one in found:
                if isinstance(one, BaseException):
                    raise one
            return cast(list[Completion], found)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        own: list[_Waiting] = [(request, loop.create_future()) for request in requests]
        self._waiting += own
        return [await future for _, future in own]

    def _send(self) -> None:
        """Send all that came since the event loop was here before."""
        waiting, self._waiting = self._waiting, []
        sending = asyncio.create_task(self._hand_over(waiting))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _hand_over(self, waiting: Sequence[_Waiting]) -> None:
        """Ask for all, and give each its completion, or what its engine raised."""
        try:
            answers = await self._share([request for request, _ in waiting])
        except BaseException as error:  # passed on to whoever awaits a request
            answers = [error] * len(waiting)
            if not isinstance(error, Exception):
                raise
        finally:
            for (_, future), one in zip(waiting, answers, strict=True):
                if future.done():
                    continue
                if isinstance(one, BaseException):
                    future.set_exception(one)
                else:
                    future.set_result(one)

    async def _share(self, requests: Sequence[GenerateRequest]) -> list[Completion | BaseException]:
        """Ask each engine for its groups of ``requests``; of one that fails, what it raised for each."""
        parts: dict[int, list[int]] = {}
        places: dict[bytes, int] = {}
        for number, request in enumerate(requests):
            prompt = request.tokens.tobytes()
            if prompt in places:
                self._balancer.add(places[prompt])
            else:
                places[prompt] = self._balancer.acquire(request.tokens)
            parts.setdefault(places[prompt], []).append(number)

        async def ask(place: int, numbers: list[int]) -> list[Completion]:
            wanted = Requests.of([requests[number] for number in numbers])
            asked = self._actors[place].generate.remote(wanted)
            try:
                packed: Completions = await answer(asked, self._names[place])
            except asyncio.CancelledError:
                ray.cancel(asked)
                raise
            finally:
                for _ in numbers:
                    self._balancer.release(place)
            return packed.unpack()

        answers = await asyncio.gather(
            *(ask(place, numbers) for place, numbers in parts.items()), return_exceptions=True
        )
        found: dict[int, Completion | BaseException] = {}
        for numbers, of_engine in zip(parts.values(), answers, strict=True):
            each = of_engine if isinstance(of_engine, list) else [of_engine] * len(numbers)
            found.update(zip(numbers, each, strict=True))
        return [found[number] for number in range(len(requests))]

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """See `Streams`; of engines that offer it."""
        place = self._balancer.acquire(request.tokens)
        pieces = self._actors[place].stream.options(num_returns="streaming").remote(request)
        try:
            async for piece in pieces:
                yield await answer(piece, self._names[place])
        finally:
            ray.cancel(pieces)
            self._balancer.release(place)

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob of each row's tokens; each engine is asked for all, so that each is checked.

        Raises:
            WeightSyncError: Two engines differ.
        """
        answers = await self._all("logprobs", ray.put(Rows.of(rows)), temperature)
        first: list[FloatArray] = answers[0].unpack()
        for name, other in zip(self._names[1:], answers[1:], strict=True):
            if other.flat.tobytes() != answers[0].flat.tobytes():
                self._refuse_difference(name, answers[0], other)
        return first

    def _refuse_difference(self, name: Process, first: Rows, other: Rows) -> None:
        if apart := difference([first.flat], [other.flat], self._precision):
            raise WeightSyncError(
                f"{self._names[0]} and {name} differ by {apart}, so they do not hold the same weights, though "
                f"both say policy version {self.version}"
            )

    async def counts(self, seconds: float) -> dict[str, Count]:
        """What all count together; nothing of engines that do not."""
        return joined(await self._all("counts", seconds)) if self._counting else {}

    async def abort(self) -> None:
        """End all running requests."""
        await self._all("abort")

    async def pause(self) -> None:
        """Stop computing; requests stay."""
        await self._all("pause")

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._all("resume")

    async def forget_cache(self) -> None:
        """Drop all cached keys and values, of engines that offer it."""
        await self._all("forget_cache")

    async def sleep(self, level: int) -> None:
        """Give the accelerators' memory back, of engines that offer it."""
        await self._all("sleep", level)

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take memory again."""
        await self._all("wake", what)

    # --- updates -----------------------------------------------------------------------

    async def begin_update(self, version: int) -> None:
        """Get all ready."""
        await self._all("begin_update", version)

    async def apply_update(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Hand each parcel to all engines, which fetch it from where it was packed."""
        if isinstance(weights, Weights):
            async for parcel in weights.parcels():
                await self._all("receive", parcel)
            return
        for packed in parcels(weights):
            await self._all("receive", ray.put(packed))

    async def finish_update(self, version: int) -> None:
        """Commit on all, once all have received everything.

        Raises:
            WeightSyncError: One did not, or says that it has another version.
        """
        await self._commit("finish_update", version)

    async def addresses(self) -> list[list[str]]:
        """Of each engine: see `Served`; of engines that offer it."""
        return await self._all("addresses")

    async def hold(self) -> None:
        """See `Served`."""
        await self._all("hold")

    async def adopt(self, version: int) -> None:
        """See `Served`.

        Raises:
            WeightSyncError: As of `finish_update`.
        """
        await self._commit("adopt", version)

    async def _commit(self, method: str, version: int) -> None:
        versions = await self._all(method, version)
        for name, found in zip(self._names, versions, strict=True):
            if found != version:
                raise WeightSyncError(
                    f"{name} says that it has policy version {found} after the update to {version}"
                )
        self.version = version

    async def close(self) -> None:
        """End running requests and let go of the weights; who has died needs nothing."""
        closing = [actor.close.remote() for actor in self._actors]
        asked = zip(closing, self._names, strict=True)
        ended = await asyncio.gather(*(answer(*one) for one in asked), return_exceptions=True)
        for problem in ended:
            if isinstance(problem, BaseException) and not isinstance(problem, ProcessDied):
                raise problem

    async def _all(self, method: str, *args: Any) -> list[Any]:
        return await self._gather([getattr(a, method).remote(*args) for a in self._actors])

    async def _gather(self, references: Sequence[Any]) -> list[Any]:
        asked = zip(references, self._names, strict=True)
        return list(await asyncio.gather(*(answer(one, name) for one, name in asked)))

    def end(self) -> None:
        """End their processes."""
        for actor in self._actors:
            ray.kill(actor)
