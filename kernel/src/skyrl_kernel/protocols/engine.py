"""What an engine is, and what some can do besides."""

from collections.abc import (
    AsyncGenerator,
    Iterable,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from skyrl_kernel.counts import Count
from skyrl_kernel.records import (
    Completion,
    FloatArray,
    GenerateRequest,
    IntArray,
    Piece,
)

if TYPE_CHECKING:
    import torch


class Generates(Protocol):
    """An engine as one rollout sees it."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order. Equal prompts should be computed once."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Generates. Owns a copy of the weights, or shares the trainer's."""

    lockstep: bool
    """True if it computes in the caller's thread, so that the kernel should hand it
    all requests of a round at once, in a fixed order."""
    version: int
    """Policy version of the weights it holds; 0 for the initial ones."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order. Equal prompts should be computed once."""
        ...

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0."""
        ...

    async def abort(self) -> None:
        """End all running requests; they return with ``finish_reason="abort"``."""
        ...

    async def pause(self) -> None:
        """Stop computing; requests stay."""
        ...

    async def resume(self) -> None:
        """Go on after `pause`."""
        ...

    async def begin_update(self, version: int) -> None:
        """Get ready for the weights of ``version``; a later `finish_update` commits them."""
        ...

    async def apply_update(self, weights: Iterable[tuple[str, "torch.Tensor"]]) -> None:
        """Receive some or all tensors, by Hugging Face name."""
        ...

    async def finish_update(self, version: int) -> None:
        """Commit. Raises if tensors are missing or ``version`` is not the one begun.

        An engine that generates meanwhile stops for it, keeps its requests, and goes
        on unless it was paused before: no token comes from half of an update.
        """
        ...

    async def close(self) -> None:
        """Release everything."""
        ...


@runtime_checkable
class Starts(Protocol):
    """What an engine adds to `Engine` that takes long to be ready."""

    async def started(self) -> None:
        """Return when it may be asked; raise if it will not be. Under a deadline of its own."""
        ...


@runtime_checkable
class Counts(Protocol):
    """What an engine adds to `Engine` that counts its own work."""

    async def counts(self, seconds: float) -> Mapping[str, Count]:
        """Since the call before, by names such as ``num_requests_running``.

        The run writes them as ``<engine>/train/<name>`` when a step has ended and as
        ``<engine>/eval/<name>`` when an evaluation has. What is not known, or not in time, is
        absent.

        Args:
            seconds: In which it was asked to generate: what throughputs are of. 0 when a run begins.
        """
        ...


@runtime_checkable
class Streams(Protocol):
    """What an engine adds to `Engine`, or a rollout's engine to `Generates`, that offers ``streams``."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """The completion as it is sampled, the same that `Generates.generate` would return.

        Closing the iterator ends the request: use `contextlib.aclosing`.
        """
        ...


@runtime_checkable
class Forgets(Protocol):
    """What an engine adds to `Engine` that offers the capability ``forgets_cache``."""

    async def forget_cache(self) -> None:
        """Drop all cached keys and values, those of running requests too.

        The requests go on: what they need is computed again with the weights that the
        engine holds now. Called after each weight sync, while the engine is paused, with
        ``trainer.fully_async.clear_kv_cache_on_weight_sync=true``.
        """
        ...


@runtime_checkable
class Sleeps(Protocol):
    """What an engine adds to `Engine` that offers ``sleeps``: it gives an accelerator back for a while.

    Called while no request runs. Between `sleep` and the second `wake` it generates
    nothing and scores nothing; a request is an error then, not a wait.
    """

    async def sleep(self, level: int) -> None:
        """Give back all memory that can be had again. Cached keys and values are gone.

        Args:
            level: 1 keeps a copy of the weights in the machine's memory; 2 keeps none, and an
                update brings them before the next request.
        """
        ...

    async def wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take memory again: for the weights first, which is when an update may come; then for the cache."""
        ...


@runtime_checkable
class Served(Protocol):
    """What an engine adds to `Engine` that offers ``served``: other processes may bring its servers weights.

    With ``trainer.runtime=ray`` a process of the trainer makes an engine of its own with
    `make_engine`, where ``generator.inference_engine.external_server_urls`` has `addresses`, and
    calls the stage `sync_weights` with that, between `hold` and `adopt` here.
    """

    addresses: Sequence[str]
    """Of every server, as other processes on its machine reach it."""

    async def hold(self) -> None:
        """Begin no request until `adopt`: it is not known which weights would sample it.

        Those that come wait, those that run go on.
        """
        ...

    async def adopt(self, version: int) -> None:
        """Go on with the weights of ``version``, which another process has brought.

        Raises a `WeightSyncError` if a server says that it has others.
        """
        ...
