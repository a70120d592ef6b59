"""The Trackio logger, read back from the database by SQL and by Trackio's own reader."""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.feed import LogRun, Sink
from skyrl_kernel.testing.contracts import SinkContract
from skyrl_trackio.plugin import TrackioConfig, TrackioSink


@pytest.fixture(autouse=True)
def _empty_folder() -> Iterator[None]:
    yield
    for path in Path(os.environ["TRACKIO_DIR"]).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def query(sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "skyrl.db") as database:
        rows = database.execute(sql, values).fetchall()
    database.close()
    return rows


class TestTrackio(SinkContract):
    def make(self) -> Sink:
        return TrackioSink(TrackioConfig(group="sweep"))

    def shown(self, run: LogRun) -> Mapping[int, Mapping[str, float]]:
        steps: dict[int, dict[str, float]] = {}
        for step, metrics in query("SELECT step, metrics FROM metrics WHERE run_id = ?", run.id):
            assert step not in steps, f"step {step} twice"
            steps[step] = json.loads(metrics)
        return steps

    def test_trackio_itself_shows_the_run_its_times_and_its_table(self) -> None:
        import trackio

        self._deliver(self.run(), [0, 1])
        first, last = trackio.SQLiteStorage.get_logs("skyrl", "run", run_id="abcd0123")
        assert (first["step"], last["reward/avg_raw_reward"]) == (0, 0.5)
        assert last["timestamp"].startswith("2026-09-21T14:13:30.25")  # step 1 of the contract
        assert last["trajectories/train"]["_type"] == "trackio.table"
        assert last["trajectories/train"]["_value"][0]["completion"].startswith("<b>6</b>")

    def test_config_tags_group_and_the_end_are_in_the_runs_config(self) -> None:
        self._deliver(self.run(), [1])
        ((text,),) = query("SELECT config FROM configs WHERE run_id = 'abcd0123'")
        config = json.loads(text)
        assert config["trainer"]["api_key"] == "***"
        assert config["tags"] == ["first", "second"]
        assert config["_Group"] == "sweep"
        assert (config["status"], config["message"]) == ("finished", "2 of 2 steps")

    def test_a_metric_with_a_name_of_trackios_own_gets_underscores(self) -> None:
        self._deliver(self.run(), [1])
        assert self.shown(self.run())[1]["__step"] == 7.0
