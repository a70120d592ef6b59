"""For runs that sample nothing: no engine, no weight sync."""

from collections.abc import Sequence

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, SyncWeights, Trainer
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest


@hookimpl
def make_engine(name: str) -> Engine | None:
    """An engine that refuses every request."""
    return NoEngine() if name == "none" else None


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """Nothing to bring anywhere; only the version counts on."""
    return _count if name == "none" else None


async def _count(trainer: Trainer, engine: Engine, version: int) -> None:
    engine.version = version


class NoEngine:
    """Keeps the protocol, generates nothing."""

    lockstep = False

    def __init__(self) -> None:
        self.version = 0

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Refuse.

        Raises:
            RuntimeError: Always; names the key to set.
        """
        raise RuntimeError(
            "generator.inference_engine.backend=none generates nothing; name an engine that does"
        )

    async def logprobs(self, rows: object, *, temperature: float) -> list[FloatArray]:
        """Refuse, like `generate`."""
        await self.generate([])
        return []

    async def abort(self) -> None:
        """Nothing runs."""

    pause = resume = close = abort

    async def begin_update(self, version: int) -> None:
        """Nothing to update."""

    async def apply_update(self, weights: object) -> None:
        """Nothing to update."""

    async def finish_update(self, version: int) -> None:
        """Count the version."""
        self.version = version
