"""Writes a run to an MLflow tracking store: a server's, or a local SQLite file.

A step is one batch of metrics with the time at which the step ended, so that a
step that comes twice is the same points again, which MLflow keeps once. Tables
are JSON artifacts in the form of MLflow's own; the newest of each name is shown
among the run's tables.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from skyrl_kernel.config import Section
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.feed import LogEnd, LogRecord, LogRun, Table
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

ID_TAG = "skyrl.id"
"""By which a continued run finds itself."""
STATUS = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
_BATCH = 100
"""Most parameters of one call."""
_LONGEST_NAME = 250
_LONGEST_VALUE = 500
"""Characters of a parameter that every version of MLflow takes; the artifact ``config.json`` has all."""
_FORBIDDEN = re.compile(r"[^/\w.\- ]")


class MlflowConfig(Section):
    """``trainer.mlflow``: which store."""

    tracking_uri: str | None = None
    """A server's address, or ``sqlite:///FILE``. Default: the environment's MLFLOW_TRACKING_URI, and
    without it ``mlflow.db`` beside the run folder."""


class MlflowSink:
    """One run of MLflow.

    Args:
        config: ``trainer.mlflow``.
    """

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config
        self._client: MlflowClient
        self._id = ""
        self._shown: dict[str, str] = {}

    def open(self, run: LogRun) -> None:
        """Begin, or go on with the run that has the same id."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        local = run.folder.resolve().parent
        given = self._config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=given or f"sqlite:///{local / 'mlflow.db'}")
        artifacts = None if given else (local / "mlflow-artifacts").as_uri()
        experiment = self._experiment(run.project, artifacts)
        found = self._client.search_runs(
            [experiment], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1
        )
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {ID_TAG: run.id, "skyrl.folder": str(run.folder)}
            tags |= {f"skyrl.tag.{tag}": "true" for tag in run.tags}
            made = self._client.create_run(experiment, tags=tags, run_name=run.name)
            self._id = made.info.run_id
        if not run.resumed:
            self._log_params(run.config)
        self._client.log_dict(self._id, dict(run.config), "config.json")
        self._client.log_text(self._id, "\n".join(run.plugins), "plugins.txt")

    def log(self, record: LogRecord) -> None:
        """One batch; on return the store has it."""
        from mlflow.entities import Metric

        moment = int(record.time * 1000)
        metrics = [
            Metric(_name(name), value, moment, record.step)
            for name, value in record.metrics.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)
        for table in record.tables:
            self._log_table(record.step, table)

    def close(self, end: LogEnd) -> None:
        """Keep how the run ended."""
        self._client.set_tag(self._id, "skyrl.end", f"{end.status}: {end.message}"[:_LONGEST_VALUE])
        self._client.set_terminated(self._id, STATUS[end.status])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException:  # another run made it meanwhile
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(_name(key), str(value)[:_LONGEST_VALUE]) for key, value in flatten(config).items()
        ]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._id, params=params[start : start + _BATCH])

    def _log_table(self, step: int, table: Table) -> None:
        path = f"{table.name}/step_{step:06}.json"
        content = {"columns": list(table.columns), "data": _cells(table.rows)}
        self._client.log_text(self._id, json.dumps(content), path)
        self._shown[table.name] = path
        shown = [{"path": path, "type": "table"} for path in self._shown.values()]
        self._client.set_tag(self._id, "mlflow.loggedArtifacts", json.dumps(shown))


def _name(name: str) -> str:
    """A name that MLflow accepts."""
    return _FORBIDDEN.sub("_", name)[:_LONGEST_NAME]


def _cells(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """NaN and infinities as text: JSON has none."""
    return [
        [str(cell) if isinstance(cell, float) and cell - cell != 0 else cell for cell in row]
        for row in rows
    ]


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """This plugin's section."""
    return {"trainer.mlflow": MlflowConfig}


@hookimpl
def make_sink(name: str, settings: Settings) -> MlflowSink | None:
    """A run of MLflow."""
    return MlflowSink(settings[MlflowConfig]) if name == "mlflow" else None
