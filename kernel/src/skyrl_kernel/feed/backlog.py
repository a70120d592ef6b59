"""What a run folder holds for loggers, read while the run may still be writing it."""

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skyrl_kernel.feed.journal import Journal
from skyrl_kernel.feed.sink import LogRecord, Table
from skyrl_kernel.feed.tables import eval_table, train_table
from skyrl_kernel.json_lines import number
from skyrl_kernel.run.folder import RunFolder

LOGGERS = "loggers"
"""Subfolder of the run folder that is the feed's own."""
LATER_STEPS = 2
"""A step's trajectories are written beside its updates, and the run waits for them before it
writes those of the next step. So once the step after it has ended as well, what is not there will not come."""


def eval_rows(folder: RunFolder, step: int) -> Path:
    """Where the trajectories of an evaluation are."""
    return folder.path / LOGGERS / "eval" / f"step_{step}.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which tables go with the metrics; numbers as in `skyrl_kernel.feed.tables.spread`."""

    train_samples: int
    """``trainer.num_logger_train_samples``; 0 where no trajectories are written."""
    eval_samples: int
    """``trainer.num_logger_eval_samples``."""


class Backlog:
    """The records of a run folder, from the first on; each is given out once.

    Args:
        folder: The run's.
        wanted: Which tables.
    """

    def __init__(self, folder: RunFolder, wanted: Wanted) -> None:
        self._folder = folder
        self._wanted = wanted
        self._journal = Journal(folder.path / LOGGERS)
        self._offset = 0
        self._lines: deque[dict[str, object]] = deque()
        self._times: dict[int, float] = {}

    def steps(self) -> list[int]:
        """Every step that the run has finished."""
        return [int(line["step"]) for line in self._folder.read_metrics()]

    def rewind(self) -> None:
        """Give out the records from the first on again."""
        self._offset = 0
        self._lines.clear()

    def read_on(self, after: int) -> bool:
        """Read what the run has written since; True if there is a later step that was not given out."""
        if self._folder.metrics.exists():
            with self._folder.metrics.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    with contextlib.suppress(ValueError):  # as every reader of the file does
                        self._lines.append(json.loads(line))
        return any(int(str(line["step"])) > after for line in self._lines)

    def records(self, after: int, *, ended: bool) -> Iterator[LogRecord]:
        """The records of later steps that were read and are complete, in order.

        Args:
            after: Steps up to this one are left out.
            ended: True if the run writes no more: what is missing will not come.
        """
        while self._lines:
            line = self._lines[0]
            step = int(str(line["step"]))
            if step > after:
                metrics = {
                    key: value
                    for key, raw in line.items()
                    if key != "step" and isinstance(value := number(raw), int | float)
                }
                final = ended or len(self._lines) > LATER_STEPS
                tables = self._tables(step, metrics, final)
                if tables is None:
                    return
                yield LogRecord(
                    step=step, time=self._time(step), metrics=metrics, tables=tuple(tables)
                )
            self._lines.popleft()  # after the yield: a record whose delivery raised comes again

    def _tables(self, step: int, metrics: dict[str, float], final: bool) -> list[Table] | None:
        """The step's tables; None if one is still to come."""
        tables = []
        train = self._folder.trajectory_file(step)
        if self._wanted.train_samples and step > 0:
            if train.exists():
                tables.append(train_table(train, step, self._wanted.train_samples))
            elif not final:
                return None
        evaluated = eval_rows(self._folder, step)
        if self._wanted.eval_samples and any(key.startswith("eval/") for key in metrics):
            if evaluated.exists():
                tables.append(eval_table(evaluated, self._wanted.eval_samples))
            elif not final:
                return None
        return [table for table in tables if table.rows]

    def _time(self, step: int) -> float:
        """When the step ended; where nobody noted it, as near as the files can tell."""
        if step not in self._times:
            self._times = self._journal.times()
        if step in self._times:
            return self._times[step]
        for path in (self._folder.trajectory_file(step), self._folder.metrics):
            if path.exists():
                return path.stat().st_mtime
        return time.time()
