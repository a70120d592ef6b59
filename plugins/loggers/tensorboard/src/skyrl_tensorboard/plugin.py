"""Writes a run as TensorBoard event files: curves, tables as text, the config.

The event files are made by TensorBoard's own writer, without TensorFlow or
torch. Where a run goes on, or a step comes twice, the file begins with a mark
from which TensorBoard drops what older files say of later steps.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from skyrl_kernel.config import Section
from skyrl_kernel.feed import LogEnd, LogRecord, LogRun, Table, spread
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_MARKDOWN = re.compile(r"([\\`*_\[\]|~])")
"""What means something within a line of markdown."""


class TensorboardConfig(Section):
    """``trainer.tensorboard``: where event files go, and how much text."""

    log_dir: str | None = None
    """Folder of runs; each has a folder ``<project>/<run>-<id>`` in it. Default: the environment's
    TENSORBOARD_DIR, and without it ``tensorboard/`` in the run folder."""
    max_rows: int = 32
    """Rows of a table that are shown, evenly spread: TensorBoard loads all text of a run at once.
    -1: all."""


class TensorboardSink:
    """One run's event files.

    Args:
        config: ``trainer.tensorboard``.
    """

    def __init__(self, config: TensorboardConfig) -> None:
        self._config = config
        self._writer: Any = None

    def open(self, run: LogRun) -> None:
        """Begin a file; earlier ones of the run stay beside it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder(run)))
        now = time.time()
        if run.resumed:
            after = -1 if run.last_step is None else run.last_step
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=now, step=after + 1, session_log=start))
        else:
            config = json.dumps(run.config, indent=1, default=str)
            self._text(0, now, "config", f"```json\n{config}\n```")
            self._text(0, now, "plugins", "\n".join(f"- {line}" for line in run.plugins))
            if run.tags:
                self._text(0, now, "tags", ", ".join(run.tags))
        self._writer.flush()

    def log(self, record: LogRecord) -> None:
        """A point on every curve; on return it is in the file."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in record.metrics.items()
        ]
        event = Event(wall_time=record.time, step=record.step, summary=Summary(value=values))
        self._writer.add_event(event)
        for table in record.tables:
            self._text(record.step, record.time, table.name, self._markdown(table))
        self._writer.flush()

    def close(self, end: LogEnd) -> None:
        """Finish the file."""
        if end.message:
            self._text(end.step, time.time(), "end", f"{end.status}: {end.message}")
        self._writer.close()

    def _folder(self, run: LogRun) -> Path:
        root = self._config.log_dir or os.environ.get("TENSORBOARD_DIR")
        if root:
            project, name = (text.replace("/", "_") for text in (run.project, run.name))
            return Path(root).expanduser() / project / f"{name}-{run.id}"
        return run.folder / "tensorboard" / run.name

    def _text(self, step: int, wall_time: float, tag: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        summary = _text_summary(tag, text)
        self._writer.add_event(Event(wall_time=wall_time, step=step, summary=summary))

    def _markdown(self, table: Table) -> str:
        shown = [table.rows[place] for place in spread(len(table.rows), self._config.max_rows)]
        lines = [[_cell(cell) for cell in line] for line in (table.columns, *shown)]
        lines.insert(1, ["---"] * len(table.columns))
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        if len(shown) == len(table.rows):
            return text
        return f"{len(shown)} of {len(table.rows)} rows\n\n{text}"


def _text_summary(tag: str, text: str) -> "Summary":
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[text.encode("utf-8", "replace")],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = create_summary_metadata(display_name="", description="")
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _cell(value: object) -> str:
    """Text that ends neither cell nor row, and that is read neither as HTML nor as markdown."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _MARKDOWN.sub(r"\\\1", str(value))
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")
    )


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """This plugin's section."""
    return {"trainer.tensorboard": TensorboardConfig}


@hookimpl
def make_sink(name: str, settings: Settings) -> TensorboardSink | None:
    """The event files of a run."""
    return TensorboardSink(settings[TensorboardConfig]) if name == "tensorboard" else None
