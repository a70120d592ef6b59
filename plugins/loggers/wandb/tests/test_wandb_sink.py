"""The wandb logger offline: what ``wandb sync`` would send, read from the run's own file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.feed import LogEnd, LogRecord, LogRun, Sink
from skyrl_kernel.testing.contracts import SinkContract
from skyrl_wandb.offline import kept_steps, records
from skyrl_wandb.plugin import WandbConfig, WandbSink, make_sink


def history(folder: Path, id: str) -> Iterator[dict[str, Any]]:
    for record in records(folder, id):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


class TestWandb(SinkContract):
    def make(self) -> Sink:
        return WandbSink(WandbConfig())

    def shown(self, run: LogRun) -> Mapping[int, Mapping[str, float]]:
        steps: dict[int, dict[str, float]] = {}
        for line in history(run.folder, run.id):
            assert line["_step"] not in steps, f"step {line['_step']} twice"
            steps[line["_step"]] = line
        return steps

    def test_tables_are_wandbs_and_stand_at_their_step(self) -> None:
        self._deliver(self.run(), [1])
        (line,) = history(self.folder, "abcd0123")
        shown = {name: line[f"trajectories/train/{name}"] for name in ("_type", "nrows", "ncols")}
        assert shown == {"_type": "table-file", "nrows": 2, "ncols": 4}
        (file,) = self.folder.glob(
            "wandb/offline-run-*/files/media/table/trajectories/train_*.json"
        )
        content = json.loads(file.read_text())
        assert content["columns"] == ["step", "prompt", "completion", "reward"]
        assert content["data"][0] == [1, "2 * 3", "<b>6</b> | `six`\n\n✓", 1.0]

    def test_a_file_of_several_blocks_that_a_kill_tore_is_read_up_to_there(self) -> None:
        self._deliver(self.run(), list(range(200)))
        (file,) = self.folder.glob("wandb/offline-run-*/*.wandb")
        data = file.read_bytes()
        assert len(data) > 2 * 32768
        assert kept_steps(self.folder, "abcd0123") == set(range(200))
        file.write_bytes(data[:40_000])
        steps = kept_steps(self.folder, "abcd0123")
        assert steps == set(range(len(steps)))
        assert 10 < len(steps) < 200

    def test_name_project_tags_and_config_arrive(self) -> None:
        self._deliver(self.run(), [1])
        (run,) = [r.run for r in records(self.folder, "abcd0123") if r.HasField("run")]
        assert (run.display_name, run.project, run.run_id) == ("run", "skyrl", "abcd0123")
        assert list(run.tags) == ["first", "second"]
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["trainer"]["api_key"] == "***"
        assert config["plugins"] == ["scripted skyrl-scripted 0.1.0"]

    def test_a_disabled_run_leaves_nothing(self) -> None:
        sink = WandbSink(WandbConfig(mode="disabled"))
        assert sink.open(self.run(resumed=True, last_step=3)) is None
        sink.log(LogRecord(step=4, time=0.0, metrics={"a": 1.0}, tables=()))
        sink.close(LogEnd(status="failed", message="disk full", step=4))
        assert not list(self.folder.iterdir())

    def test_a_failed_run_is_failed_and_shows_what_ended_it(self) -> None:
        sink = self.make()
        sink.open(self.run())
        sink.close(LogEnd(status="failed", message="disk full", step=3))
        (exit_code,) = [
            r.exit.exit_code for r in records(self.folder, "abcd0123") if r.HasField("exit")
        ]
        assert exit_code == 1
        (file,) = self.folder.glob("wandb/offline-run-*/files/media/table/error/tracebacks_*.json")
        assert json.loads(file.read_text())["data"] == [[3, "disk full"]]


def test_without_a_key_an_online_run_is_refused_and_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ConfigError, match=r"no key for it.*trainer\.wandb\.mode=offline"):
        WandbSink(WandbConfig())
    with pytest.raises(ConfigError, match="no key for it"):
        WandbSink(WandbConfig(mode="online"))
    WandbSink(WandbConfig(mode="offline"))
    WandbSink(WandbConfig(mode="disabled"))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"project_name": "a/b"}, r"trainer\.project_name='a/b' is no name of a project for wandb"),
        ({"project_name": ""}, "it has 1 to 128 characters"),
        ({"tags": ["good", "x" * 65]}, "is no tag for wandb: it has 1 to 64 characters"),
    ],
)
def test_names_that_wandb_does_not_take_are_refused(values: dict[str, Any], complaint: str) -> None:
    settings = {TrainerConfig: TrainerConfig(**values), WandbConfig: WandbConfig()}
    with pytest.raises(ConfigError, match=complaint):
        make_sink("wandb", settings)


def test_a_key_in_the_environment_or_in_netrc_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    file = tmp_path / "netrc"
    file.write_text("machine wandb.example login user password 0123\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    with pytest.raises(ConfigError, match=r"https://api\.wandb\.ai"):
        WandbSink(WandbConfig())
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    WandbSink(WandbConfig())
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    WandbSink(WandbConfig())
