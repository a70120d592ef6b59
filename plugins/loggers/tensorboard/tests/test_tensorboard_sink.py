"""The TensorBoard logger, read back by TensorBoard's own reader."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from skyrl_kernel.feed import LogEnd, LogRecord, LogRun, Sink, Table
from skyrl_kernel.testing.contracts import SinkContract
from skyrl_tensorboard.plugin import TensorboardConfig, TensorboardSink


@pytest.fixture(autouse=True)
def _no_folder_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_DIR", raising=False)


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def text(accumulator: EventAccumulator, tag: str) -> str:
    return accumulator.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


class TestTensorboard(SinkContract):
    def make(self) -> Sink:
        return TensorboardSink(TensorboardConfig())

    def shown(self, run: LogRun) -> Mapping[int, Mapping[str, float]]:
        accumulator = read(run.folder / "tensorboard" / run.name)
        steps: dict[int, dict[str, float]] = {}
        for tag in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(tag):
                assert tag not in steps.setdefault(event.step, {}), f"{tag} twice"
                steps[event.step][tag] = event.value
        return steps

    def test_a_point_has_the_time_at_which_its_step_ended(self) -> None:
        self._deliver(self.run(), [0, 1])
        events = read(self.folder / "tensorboard" / "run").Scalars("timing/step")
        assert [event.wall_time for event in events] == [1_790_000_000.25, 1_790_000_010.25]

    def test_config_plugins_tags_tables_and_the_end_are_texts(self) -> None:
        self._deliver(self.run(), [1])
        accumulator = read(self.folder / "tensorboard" / "run")
        assert json.loads(text(accumulator, "config").strip("`json\n")) == self.run().config
        assert text(accumulator, "plugins") == "- scripted skyrl-scripted 0.1.0"
        assert text(accumulator, "tags") == "first, second"
        assert text(accumulator, "end") == "finished: 2 of 2 steps"
        assert text(accumulator, "trajectories/train").splitlines() == [
            "| step | prompt | completion | reward |",
            "| --- | --- | --- | --- |",
            r"| 1 | 2 \* 3 | &lt;b&gt;6&lt;/b&gt; \| \`six\`<br><br>✓ | 1 |",
            "| 1 | ünd |  |  |",
        ]


def test_of_a_long_table_some_rows_are_shown_and_it_says_so(tmp_path: Path) -> None:
    table = Table(name="trajectories/eval", columns=("n",), rows=[(n,) for n in range(100)])
    sink = TensorboardSink(TensorboardConfig(log_dir=str(tmp_path / "all"), max_rows=4))
    run = LogRun(
        id="a", name="r", project="p", folder=tmp_path, config={}, tags=(), plugins=(),
        resumed=False, last_step=None,
    )  # fmt: skip
    sink.open(run)
    sink.log(LogRecord(step=1, time=0.0, metrics={}, tables=(table,)))
    sink.close(LogEnd(status="finished"))
    shown = text(read(tmp_path / "all" / "p" / "r-a"), "trajectories/eval")
    assert shown.splitlines() == [
        "4 of 100 rows", "", "| n |", "| --- |", "| 0 |", "| 25 |", "| 50 |", "| 75 |",
    ]  # fmt: skip


def test_the_environment_names_the_folder_of_runs_as_in_skyrl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "boards"))
    sink = TensorboardSink(TensorboardConfig())
    sink.open(
        LogRun(
            id="a", name="r", project="p", folder=tmp_path, config={}, tags=(), plugins=(),
            resumed=False, last_step=None,
        )
    )  # fmt: skip
    sink.close(LogEnd(status="finished"))
    assert list((tmp_path / "boards" / "p" / "r-a").iterdir())
