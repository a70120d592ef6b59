"""Trainer and engine on the same GPUs: who has their memory when.

| while | the engine | the trainer |
|---|---|---|
| it generates and evaluates | is awake | is offloaded |
| the trainer scores and updates | sleeps, its weights dropped | is loaded |
| weights are synced | has its weights' memory, no cache | is loaded |

So the weights of both are there during a sync alone. Checkpoints and exports are written
from the trainer's offloaded copy.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from skyrl_kernel.errors import HookError
from skyrl_kernel.plan import Plan
from skyrl_kernel.protocols import Engine, Sleeps, Trainer

Call = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls a method of the trainer where it computes."""


class GpuSharing:
    """Hands the GPU over. In a run whose engine never sleeps nothing here does anything.

    A trainer with a GPU of its own stays where it is; its engine sleeps in syncs
    alone, to have room for what they need.

    Args:
        plan: Says who sleeps and who moves.
        engine: Awake at first.
        trainer: Offloaded at first, if it moves.
        call: Runs a method of the trainer on the trainer's thread.

    Raises:
        HookError: The engine is to sleep, and cannot.
    """

    def __init__(self, plan: Plan, engine: Engine, trainer: Trainer, call: Call) -> None:
        self._engine: Sleeps | None = None
        if plan.engine_sleeps:
            if not isinstance(engine, Sleeps):
                raise HookError(
                    f"the engine '{plan.tree.generator.inference_engine.backend}' offers 'sleeps' and has "
                    "no methods sleep and wake; see skyrl_kernel.protocols.Sleeps"
                )
            self._engine = engine
        self._trainer = trainer
        self._call = call
        self._moves_trainer = plan.hands_over_gpu
        self._is_awake = True

    async def to_trainer(self) -> None:
        """Give it to the trainer until the next sync, which brings the engine its weights."""
        if self._moves_trainer:
            await self._to_trainer(level=2)

    async def begin_sync(self) -> None:
        """Have room for the engine's weights beside the trainer's, and for nothing else."""
        if self._engine is not None:
            await self._to_trainer(level=2)
            await self._engine.wake("weights")

    async def end_sync(self) -> None:
        """Give it to the engine."""
        await self._to_engine()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """The trainer's for a while; the engine goes on with the weights that it has.

        A failure meanwhile ends the run, as one in `to_trainer` does, and nothing is handed back: to
        wake an engine that nobody will ask takes memory, and could fail with an error that hides
        the first. Servers that outlive the run are woken by the engine's ``close``.
        """
        if self._engine is None or not self._moves_trainer:
            yield
            return
        await self._to_trainer(level=1)
        yield
        await self._engine.wake("weights")
        await self._to_engine()

    async def _to_trainer(self, level: int) -> None:
        if self._engine is None or not self._is_awake:
            return
        self._is_awake = False
        await self._engine.sleep(level)
        if self._moves_trainer:
            await self._call(self._trainer.onload)

    async def _to_engine(self) -> None:
        if self._engine is None or self._is_awake:
            return
        if self._moves_trainer:
            await self._call(self._trainer.offload)
        await self._engine.wake("kv_cache")
        self._is_awake = True
