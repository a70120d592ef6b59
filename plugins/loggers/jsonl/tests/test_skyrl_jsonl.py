import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from skyrl_jsonl import plugin
from skyrl_jsonl.plugin import JsonlConfig
from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo
from skyrl_kernel.records import Failure

TO_STDOUT = """
from pathlib import Path
from skyrl_jsonl import plugin
from skyrl_kernel import progress
from skyrl_kernel.protocols import RunEnd, RunInfo
plugin.on_run_start(RunInfo(
    name="demo", project="skyrl", folder=Path("runs/demo"), total_steps=1, start_step=0,
    config={"trainer": {"jsonl": {"path": "-"}}}, plugins=[]))
with progress.Progress("demo", 1) as shown:
    shown.message("for people")
plugin.on_run_end(RunEnd(step=1, status="finished", message=""))
"""


def run_info(folder: Path, path: str | None = None, start_step: int = 0) -> RunInfo:
    return RunInfo(
        name="demo",
        project="skyrl",
        folder=folder,
        total_steps=2,
        start_step=start_step,
        config={"trainer": {"jsonl": {"path": path}, "seed": 7}},
        plugins=["grpo skyrl-grpo 0.1.0"],
    )


def play(folder: Path, path: str | None = None) -> None:
    plugin.on_run_start(run_info(folder, path))
    plugin.on_eval_end(EvalInfo(step=0, metrics={"eval/all/exact_match": 0.1}))
    plugin.on_failure(
        Failure(step=1, uid="7", sample=0, kind="timeout", plugin="multiply", message="60 s")
    )
    plugin.on_step_end(StepInfo(step=1, total_steps=2, metrics={"loss": float("nan")}))
    plugin.on_checkpoint(1, folder / "checkpoints" / "global_step_1")
    plugin.on_run_end(RunEnd(step=1, status="stopped", message="enough", warnings=["odd"]))


def read(path: Path) -> list[dict]:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        assert event.pop("time").endswith("+00:00")
    return events


def test_every_event_is_one_line_of_json(tmp_path):
    play(tmp_path)
    assert read(tmp_path / "events.jsonl") == [
        {
            "event": "run_start", "name": "demo", "project": "skyrl", "folder": str(tmp_path),
            "start_step": 0, "total_steps": 2, "plugins": ["grpo skyrl-grpo 0.1.0"],
            "config": {"trainer": {"jsonl": {"path": None}, "seed": 7}},
        },
        {"event": "eval", "step": 0, "metrics": {"eval/all/exact_match": 0.1}},
        {
            "event": "failure", "step": 1, "uid": "7", "sample": 0, "kind": "timeout",
            "plugin": "multiply", "message": "60 s",
        },
        {"event": "step", "step": 1, "total_steps": 2, "metrics": {"loss": "NaN"}},
        {
            "event": "checkpoint", "step": 1,
            "folder": str(tmp_path / "checkpoints" / "global_step_1"),
        },
        {
            "event": "run_end", "step": 1, "status": "stopped", "message": "enough",
            "warnings": ["odd"],
        },
    ]  # fmt: skip


def test_the_config_names_another_file_whose_folder_is_made(tmp_path):
    play(tmp_path / "run", str(tmp_path / "elsewhere" / "e.jsonl"))
    assert len(read(tmp_path / "elsewhere" / "e.jsonl")) == 6
    assert not (tmp_path / "run").exists()


def test_a_continued_run_appends(tmp_path):
    play(tmp_path)
    plugin.on_run_start(run_info(tmp_path, start_step=1))
    assert [event["event"] for event in read(tmp_path / "events.jsonl")][-2:] == [
        "run_end",
        "run_start",
    ]


def test_a_dash_gives_standard_output_to_the_events_alone():
    ended = subprocess.run(
        [sys.executable, "-c", TO_STDOUT], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["event"] for line in ended.stdout.splitlines()] == [
        "run_start",
        "run_end",
    ]
    assert ended.stderr == "for people\n"


def test_the_section_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        JsonlConfig.model_validate({"file": "x"})


def test_the_section_stands_where_the_plugins_toml_says():
    assert list(plugin.config_sections()) == ["trainer.jsonl"]
