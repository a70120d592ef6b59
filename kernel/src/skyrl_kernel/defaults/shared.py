"""Weight sync without moving anything: the engine computes with the trainer's own weights."""

from typing import Any, Protocol, runtime_checkable

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, SyncWeights, Trainer


@runtime_checkable
class _Lends(Protocol):
    def module(self, role: str) -> Any: ...


@runtime_checkable
class _Shares(Protocol):
    def share(self, module: Any) -> None: ...


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """Share memory within one process."""
    return shared if name == "shared" else None


async def shared(trainer: Trainer, engine: Engine, version: int) -> None:
    """Let the engine use the trainer's module, and commit ``version``.

    Raises:
        CapabilityError: The trainer has no module to lend, or the engine takes none.
    """
    if not isinstance(trainer, _Lends) or not isinstance(engine, _Shares):
        lacking = "trainer" if not isinstance(trainer, _Lends) else "engine"
        raise CapabilityError(
            "generator.inference_engine.weight_sync_backend=shared needs a trainer and an engine in "
            f"one process that share a module; this {lacking} does not"
        )
    engine.share(trainer.module("policy"))
    await engine.begin_update(version)
    await engine.finish_update(version)
