"""``loggers/journal.jsonl``: when each step ended, and how the run did.

``metrics.jsonl`` has neither, since it must be equal for equal runs.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_kernel.feed.sink import LogEnd
from skyrl_kernel.json_lines import append_lines, read_lines

NAME = "journal.jsonl"


class Journal:
    """Writes and reads the file; a step that was done again has the later time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def step(self, step: int) -> None:
        """Note that a step ended now."""
        self._append({"step": step})

    def end(self, end: LogEnd) -> None:
        """Note how the run ended."""
        self._append({"end": end.status, "message": end.message, "step": end.step})

    def _append(self, entry: Mapping[str, Any]) -> None:
        append_lines(self._path, [{"time": round(time.time(), 3), **entry}])

    def times(self) -> dict[int, float]:
        """Step → seconds since 1970."""
        entries = [entry for _, entry in read_lines(self._path)]
        return {int(one["step"]): float(one["time"]) for one in entries if "end" not in one}

    def last_end(self) -> LogEnd | None:
        """How the run ended when it last did; None if it is going on, or was killed."""
        entries = [entry for _, entry in read_lines(self._path)]
        if not entries or "end" not in entries[-1]:
            return None
        last = entries[-1]
        return LogEnd(status=last["end"], message=last["message"], step=last["step"])
