"""What a logger with a store implements, and the records that it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

NOTHING = -1
"""Stands for the last step where there is none: the first may be step 0."""

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows for people to read.

    Example:
        >>> Table(name="trajectories/train", columns=("prompt", "reward"), rows=(("2 * 3", 1.0),)).name
        'trajectories/train'
    """

    name: str
    """``trajectories/train`` or ``trajectories/eval``."""
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """One cell per column; text that UTF-8 can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRun:
    """The run whose records follow."""

    id: str
    """Names this run in the store, in letters and digits; stays the same when the run is continued."""
    name: str
    """For people: ``trainer.run_name``, with ``.2`` and so on after a run went back."""
    project: str
    folder: Path
    config: Mapping[str, Any]
    """The resolved tree, secrets masked."""
    tags: Sequence[str]
    plugins: Sequence[str]
    """``name distribution version`` lines of the plugin lock."""
    resumed: bool
    """True if the store has been opened for this id before."""
    last_step: int | None
    """The last step that the store was given before; None if none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRecord:
    """One step of the run; step 0 is the evaluation before training."""

    step: int
    time: float
    """Seconds since 1970 at which the step ended."""
    metrics: Mapping[str, float]
    """SkyRL's names; NaN and infinities among the values."""
    tables: Sequence[Table] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEnd:
    """How the run ended."""

    status: Literal["finished", "stopped", "interrupted", "failed"]
    message: str = ""
    step: int = 0


class Sink(Protocol):
    """The store that a logger writes to.

    The calls come from one thread of the logger's own process, one after the
    other: ``open``, ``log`` for each step in ascending order, ``close``. They may
    take their time. Raising means that the record was not delivered: after a
    while a fresh sink is made, opened with ``resumed``, and given the same record
    again. A process may be killed between a ``log`` and the note that it was
    done, so the same step may come twice; the store must show it once, or ``open``
    must tell.
    """

    def open(self, run: LogRun) -> int | None:
        """Begin, or go on. Import the heavy library here.

        Returns:
            The last step that the store holds, or `NOTHING`, where it can tell that
            better than ``loggers/<name>.json``: records follow from there. Otherwise None.
        """
        ...

    def log(self, record: LogRecord) -> None:
        """Take one step. On return it has left this process, or is on the disk."""
        ...

    def close(self, end: LogEnd) -> None:
        """The run ended. It may be continued later: then ``open`` is called again."""
        ...
