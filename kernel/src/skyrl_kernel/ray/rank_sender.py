"""A rank that brings weights to engines past Ray: attached to their servers, as to somebody else's.

The stage `sync_weights` runs in the rank's own process, with the rank's trainer and an engine
that is attached. The trainer of several ranks is asked for its weights on all of them, in step:
those that are attached to nothing go along.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine, LendsAdapter, Starts, SyncWeights, Trainer

if TYPE_CHECKING:
    import torch


class RankSender:
    """Calls the stage, sync after sync, on one event loop: the engine's connections belong to it.

    Args:
        sync: The stage.
        engine: Attached to the servers that this rank brings weights to.
        is_adapter: Whether the stage reads the adapter alone.
    """

    def __init__(self, sync: SyncWeights, engine: Engine, *, is_adapter: bool) -> None:
        self._sync, self._engine = sync, engine
        self._reader = _ReadAdapter if is_adapter else _Read
        self._runner = asyncio.Runner()

    def start(self) -> None:
        """Return when the servers may be asked."""
        if isinstance(self._engine, Starts):
            self._runner.run(self._engine.started())

    def send(self, trainer: Trainer, version: int) -> None:
        """Bring the weights of ``version``.

        Raises:
            WeightSyncError: As the stage raises it, or the engine has another version afterwards.
        """
        read = self._reader(trainer)
        try:
            self._runner.run(self._call(cast(Trainer, read), version))
        except BaseException:
            with contextlib.suppress(Exception):  # what they say comes of the one that is raised
                read.to_the_end()
            raise
        read.to_the_end()
        if self._engine.version != version:
            raise WeightSyncError(
                f"after the sync of policy version {version} its engine says version "
                f"{self._engine.version}; the stage must commit the version it was given"
            )

    async def _call(self, trainer: Trainer, version: int) -> None:
        await self._sync(trainer, self._engine, version)

    def close(self) -> None:
        """Let go of the servers, which go on."""
        self._runner.run(self._engine.close())
        self._runner.close()


def go_along(trainer: Trainer, *, is_adapter: bool) -> None:
    """Compute what other ranks read, and drop it."""
    (_ReadAdapter if is_adapter else _Read)(trainer).to_the_end()


class _Read:
    """A rank's trainer as the stage sees it: what it does not read is computed all the same.

    The other ranks wait in each collective for this one, whatever keeps it from going on.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._tensors: Iterator[tuple[str, torch.Tensor]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def weights(self, role: str = "policy") -> "Iterator[tuple[str, torch.Tensor]]":
        """See `Trainer.weights`; once for each sync."""
        return self._once(self._trainer.weights(role))

    def to_the_end(self) -> None:
        """Go on where the stage has stopped."""
        for _ in self._all() if self._tensors is None else self._tensors:
            pass

    def _all(self) -> "Iterator[tuple[str, torch.Tensor]]":
        return self._trainer.weights()

    def _once(
        self, tensors: "Iterator[tuple[str, torch.Tensor]]"
    ) -> "Iterator[tuple[str, torch.Tensor]]":
        if self._tensors is not None:
            raise WeightSyncError(
                "a stage sync_weights asked for the weights twice; in a trainer's process it reads them once, "
                "as all ranks do"
            )
        self._tensors = tensors
        return tensors


class _ReadAdapter(_Read):
    """The same where the adapter is what all ranks compute."""

    def adapter(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """See `LendsAdapter.adapter`; once for each sync."""
        return self._once(self._all())

    def _all(self) -> "Iterator[tuple[str, torch.Tensor]]":
        assert isinstance(self._trainer, LendsAdapter), "needed by the stage, and offered"
        return self._trainer.adapter()
