"""Where a run computes, what is read before it begins, and what observers are told of it."""

from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from skyrl_kernel.protocols.engine import Engine
from skyrl_kernel.protocols.stages import SyncWeights
from skyrl_kernel.protocols.trainer import Trainer
from skyrl_kernel.records import (
    Trajectory,
)

if TYPE_CHECKING:
    from skyrl_kernel.recipe import EngineRecipe, TrainerRecipe


class Runtime(Protocol):
    """Where trainer and engine run: in this process, or in others that it starts."""

    def start_engine(self, recipe: "EngineRecipe") -> Engine:
        """The engine, or an object that stands for it in another process."""
        ...

    def start_trainer(self, recipe: "TrainerRecipe") -> Trainer:
        """The trainer, or an object that stands for it in other processes."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


@runtime_checkable
class SyncsByRanks(Protocol):
    """What a runtime adds to `Runtime` that offers ``separate_processes``.

    A stage `sync_weights` that needs more than an engine's own update then runs in the trainer's
    processes, each with an engine that is attached to servers; see `Served`.
    """

    def sync_by_ranks(self) -> SyncWeights:
        """What stands for that stage here. Called once, after trainer and engine were started."""
        ...


@runtime_checkable
class Measures(Protocol):
    """What a runtime adds to `Runtime` that measures its machines."""

    def measure(self) -> Mapping[str, float]:
        """Metrics since the call before, by their whole names, such as ``ray/gpu.util.avg``.

        Called when a step has ended. What is not known by then is left out, not waited for.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """How ``skyrl data NAME`` makes a data set."""

    options: type[BaseModel]
    """Fields are the command's options."""
    write: Callable[[Any, Path, Path | None], Mapping[str, Path]]
    """(options, output_dir, source) → split name → the file written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What observers learn when a run starts."""

    name: str
    project: str
    folder: Path
    total_steps: int
    start_step: int
    config: Mapping[str, Any]
    """The resolved tree, secrets masked."""
    plugins: Sequence[str]
    """``name distribution version`` lines of the plugin lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInfo:
    """What observers learn after a step."""

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    """SkyRL's names: ``reward/…``, ``policy/…``, ``timing/…``."""
    trajectories: Sequence[Trajectory] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalInfo:
    """What observers learn after an evaluation."""

    step: int
    metrics: Mapping[str, float]
    """``eval/<source>/<name>``."""
    trajectories: Sequence[Trajectory] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """What observers learn when a run ends, however it ends."""

    step: int
    """The last one that is kept: of a run that did not finish, that of its newest checkpoint, 0 if none."""
    status: Literal["finished", "stopped", "interrupted", "failed"]
    message: str
    warnings: Sequence[str] = ()
    """What the run said about itself: constant rewards, unchanged weights, …"""
