"""Weight sync through the engine's own update: for engines that hold a copy of the weights."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, SyncWeights, Trainer

if TYPE_CHECKING:
    import torch


@hookimpl
def sync_weights(name: str) -> SyncWeights | None:
    """Hand every tensor to the engine, which brings it where it computes."""
    return push if name == "push" else None


async def push(trainer: Trainer, engine: Engine, version: int) -> None:
    """Send the policy's weights as one transaction, and commit ``version``.

    Generation goes on while tensors are handed over; an engine stops it by itself for
    the commit, and requests go on with the new weights.

    Raises:
        WeightSyncError: The engine refused; it says which weights it has.
    """
    await update(engine, trainer.weights(), version)


async def update(
    engine: Engine, tensors: "Iterable[tuple[str, torch.Tensor]]", version: int
) -> None:
    """One transaction: all of ``tensors``, and ``version`` once they are there."""
    await engine.begin_update(version)
    await engine.apply_update(tensors)
    await engine.finish_update(version)
