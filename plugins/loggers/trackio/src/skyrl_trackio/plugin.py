"""Writes a run into Trackio's local database, which ``trackio show`` displays.

Rows go straight into Trackio's storage and not through ``trackio.log``, which
queues them in a thread, stamps them with the time of the call, and only warns
where they are lost. Each has an id made of run and step, so that a step that
comes twice is kept once.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from skyrl_kernel.config import Section
from skyrl_kernel.feed import LogEnd, LogRecord, LogRun
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings

RESERVED = frozenset({"project", "run", "timestamp", "step", "time", "metrics"})
"""Names that Trackio keeps for itself; it puts two underscores before such a metric."""


class TrackioConfig(Section):
    """``trainer.trackio``. The database is where the environment's TRACKIO_DIR says."""

    group: str | None = None
    """Shows this run together with others of the group."""


class TrackioSink:
    """One run in Trackio's database.

    Args:
        config: ``trainer.trackio``.
    """

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config
        self._run: LogRun
        self._settings: dict[str, Any]
        self._last: int | None

    def open(self, run: LogRun) -> None:
        """Remember where rows belong; the config goes in with the first of them."""
        self._run = run
        self._last = run.last_step
        self._settings = {
            **run.config,
            "tags": list(run.tags),
            "plugins": list(run.plugins),
            "folder": str(run.folder),
            "_Username": None,
            "_Created": datetime.now(UTC).isoformat(),
            "_Group": self._config.group,
        }

    def log(self, record: LogRecord) -> None:
        """One row; on return it is in the database."""
        import trackio

        run = self._run
        values: dict[str, Any] = {
            f"__{name}" if name in RESERVED else name: value
            for name, value in record.metrics.items()
        }
        for table in record.tables:
            rows = trackio.Table(columns=list(table.columns), data=list(map(list, table.rows)))
            values[table.name] = rows._to_dict(run.project, run.name, record.step)
        self._write(record.step, record.time, values)
        self._last = record.step

    def close(self, end: LogEnd) -> None:
        """Keep how the run ended, in its config; a run without a step is not there."""
        if self._last is not None:
            self._settings |= {"status": end.status, "message": end.message}
            self._write(self._last, 0.0, {})  # the row is there already and stays as it is

    def _write(self, step: int, seconds: float, values: dict[str, Any]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        run = self._run
        SQLiteStorage.bulk_log(
            project=run.project,
            run=run.name,
            run_id=run.id,
            metrics_list=[values],
            steps=[step],
            timestamps=[datetime.fromtimestamp(seconds, UTC).isoformat()],
            log_ids=[f"{run.id}-{step}"],
            config=self._settings,
        )


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """This plugin's section."""
    return {"trainer.trackio": TrackioConfig}


@hookimpl
def make_sink(name: str, settings: Settings) -> TrackioSink | None:
    """A run in Trackio's database."""
    return TrackioSink(settings[TrackioConfig]) if name == "trackio" else None
