"""The MLflow logger with a local SQLite store, read back by SQL."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.feed import LogEnd, LogRun, Sink
from skyrl_kernel.testing.contracts import SinkContract
from skyrl_mlflow.plugin import MlflowConfig, MlflowSink

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:DeprecationWarning"  # MLflow's own queries
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making its tables takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


class TestMlflow(SinkContract):
    @pytest.fixture(autouse=True)
    def _a_project_of_its_own(
        self, database: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nonexistent/not.db")
        self.database = database
        self.project = request.node.name

    def make(self) -> Sink:
        return MlflowSink(MlflowConfig(tracking_uri=f"sqlite:///{self.database}"))

    def run(self, **changes: Any) -> LogRun:
        changes["id"] = f"{abs(hash(self.project)):x}-{changes.get('id', 'abcd0123')}"
        return super().run(**{"project": self.project, **changes})

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.database)
        rows = connection.execute(sql, values).fetchall()
        connection.close()
        return rows

    def run_uuid(self, run: LogRun) -> str:
        sql = "SELECT run_uuid FROM tags WHERE key = 'skyrl.id' AND value = ?"
        ((uuid,),) = self.query(sql, run.id)
        return str(uuid)

    def shown(self, run: LogRun) -> Mapping[int, Mapping[str, float]]:
        steps: dict[int, dict[str, float]] = {}
        sql = "SELECT step, key, value FROM metrics WHERE run_uuid = ?"
        for step, key, value in self.query(sql, self.run_uuid(run)):
            assert key not in steps.setdefault(step, {}), f"{key} of step {step} twice"
            steps[step][key] = value
        return steps

    def test_a_point_has_the_time_at_which_its_step_ended(self) -> None:
        run = self.run()
        self._deliver(run, [1])
        sql = "SELECT DISTINCT timestamp FROM metrics WHERE run_uuid = ?"
        assert self.query(sql, self.run_uuid(run)) == [(1_790_000_010_250,)]

    def test_config_is_parameters_and_an_artifact_and_tables_are_artifacts(self) -> None:
        run = self.run()
        self._deliver(run, [1, 2])
        uuid = self.run_uuid(run)
        params = dict(self.query("SELECT key, value FROM params WHERE run_uuid = ?", uuid))
        assert params["trainer.api_key"] == "***"
        assert params["trainer.lr"] == "1e-06"
        ((uri,),) = self.query("SELECT artifact_uri FROM runs WHERE run_uuid = ?", uuid)
        artifacts = Path(uri.removeprefix("file://"))
        assert json.loads((artifacts / "config.json").read_text()) == run.config
        table = json.loads((artifacts / "trajectories/train/step_000002.json").read_text())
        assert table["columns"] == ["step", "prompt", "completion", "reward"]
        assert table["data"][1] == [1, "ünd", "", None]
        tags = dict(self.query("SELECT key, value FROM tags WHERE run_uuid = ?", uuid))
        assert json.loads(tags["mlflow.loggedArtifacts"]) == [
            {"path": "trajectories/train/step_000002.json", "type": "table"}
        ]
        assert tags["skyrl.tag.first"] == "true"

    @pytest.mark.parametrize(
        ("status", "shown"),
        [
            ("finished", "FINISHED"),
            ("stopped", "FINISHED"),
            ("interrupted", "KILLED"),
            ("failed", "FAILED"),
        ],
    )
    def test_the_end_is_the_runs_status(self, status: Any, shown: str) -> None:
        run = self.run()
        sink = self.make()
        sink.open(run)
        sink.close(LogEnd(status=status, message="why", step=3))
        sql = "SELECT status FROM runs WHERE run_uuid = ?"
        assert self.query(sql, self.run_uuid(run)) == [(shown,)]


def test_the_default_store_lies_beside_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())  # its tables are made already
    sink = MlflowSink(MlflowConfig())
    folder = tmp_path / "run"
    folder.mkdir()
    sink.open(
        LogRun(
            id="x", name="run", project="a new one", folder=folder, config={}, tags=(),
            plugins=("one 1.0",), resumed=False, last_step=None,
        )
    )  # fmt: skip
    sink.close(LogEnd(status="finished"))
    (file,) = tmp_path.glob("mlflow-artifacts/*/artifacts/plugins.txt")
    assert file.read_text() == "one 1.0"
