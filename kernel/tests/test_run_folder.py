import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyrl_kernel.errors import is_disk_full
from skyrl_kernel.records import Failure, Group, Prompt, Segment, StopReason, Trajectory
from skyrl_kernel.run.folder import RunFolder


def failure(step: int) -> Failure:
    return Failure(
        step=step, uid="7", sample=0, kind="timeout", plugin="multiply", message="step took 60 s"
    )


def group() -> Group:
    prompt = Prompt(uid="7", messages=[{"role": "user", "content": "6 * 7"}], env_class="multiply")
    segment = Segment(
        tokens=np.array([1, 2], np.int32), num_prompt_tokens=2, loss_mask=np.zeros(2, bool)
    )
    trajectory = Trajectory(
        prompt=prompt, sample=0, segments=(segment,), turns=(), stop_reason=StopReason.STOP
    )
    return Group(index=0, prompt=prompt, trajectories=(trajectory,))


def write_steps(folder: RunFolder, steps: range) -> None:
    for step in steps:
        folder.write_trajectories(step, [group()])
        folder.append_failures([failure(step)])
        folder.append_metrics(step, {"reward/avg_raw_reward": step / 10})


def test_metrics_are_one_json_object_per_step(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.append_metrics(1, {"reward/avg_raw_reward": 0.25, "loss": math.nan})
        folder.append_metrics(2, {"reward/avg_raw_reward": np.float64(0.5)})
        lines = folder.metrics.read_text().splitlines()
        assert lines[0] == '{"step": 1, "reward/avg_raw_reward": 0.25, "loss": "NaN"}'
        first, second = folder.read_metrics()
    assert math.isnan(first["loss"])
    assert second == {"step": 2, "reward/avg_raw_reward": 0.5}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(), max_size=5))
def test_metrics_come_back_bit_for_bit(tmp_path_factory, values):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.append_metrics(1, {str(i): value for i, value in enumerate(values)})
    back = [value for key, value in folder.read_metrics()[0].items() if key != "step"]
    assert np.array_equal(np.array(back, float), np.array(values, float), equal_nan=True)


def test_after_truncation_the_folder_is_that_of_a_run_that_got_no_further(tmp_path):
    undisturbed = RunFolder.create(tmp_path / "a")
    write_steps(undisturbed, range(1, 4))
    killed = RunFolder.create(tmp_path / "b")
    write_steps(killed, range(1, 7))
    with killed.metrics.open("ab") as file:
        file.write(b'{"step": 7, "rew')
    (killed.trajectories / ".step_7.parquet.tmp-123").write_bytes(b"half")
    (killed.path / ".config.yaml.tmp-123").write_bytes(b"half")

    assert killed.truncate_after(3) == [4, 5, 6]

    for name in ("metrics.jsonl", "failures.jsonl"):
        assert (killed.path / name).read_bytes() == (undisturbed.path / name).read_bytes()
    for folder in (killed, undisturbed):
        assert sorted(path.name for path in folder.trajectories.iterdir()) == [
            "step_1.parquet",
            "step_2.parquet",
            "step_3.parquet",
        ]
    assert sorted(p.name for p in killed.path.iterdir()) == sorted(
        p.name for p in undisturbed.path.iterdir()
    )
    write_steps(killed, range(4, 5))
    assert [line["step"] for line in killed.read_metrics()] == [1, 2, 3, 4]
    killed.close()
    undisturbed.close()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400))
def test_a_kill_at_any_byte_of_the_metrics_costs_the_torn_line_only(tmp_path_factory, cut):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for step in range(1, 6):
        folder.append_metrics(step, {"reward/avg_raw_reward": 1 / step})
    whole = folder.metrics.read_bytes()
    folder.metrics.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    folder.truncate_after(5)
    assert folder.metrics.read_bytes() == b"".join(whole.splitlines(keepends=True)[:complete])


def test_beginning_anew_removes_every_step_and_keeps_the_config(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_config({"a": 1}, {"a": "default"})
        folder.append_metrics(0, {"eval/all/exact_match": 0.1})
        write_steps(folder, range(1, 3))
        assert folder.truncate_after(-1) == [0, 1, 2]
        assert folder.read_metrics() == []
        assert folder.read_config() == {"a": 1}


def test_dumped_evaluations_of_later_steps_are_taken_back(tmp_path):
    with RunFolder.create(tmp_path / "run", export=tmp_path / "out") as folder:
        for step in (0, 5, 10):
            folder.write_aside(
                folder.eval_dump(step), lambda path: void((path / "a.jsonl").write_text("{}"))
            )
        (folder.dumped_evals / "notes").mkdir()
        assert folder.truncate_after(5) == [10]
        left = sorted(path.name for path in (tmp_path / "out" / "dumped_evals").iterdir())
        assert left == ["global_step_0_evals", "global_step_5_evals", "notes"]


def test_a_folder_moved_aside_keeps_everything_and_takes_the_next_number(tmp_path):
    for number in (1, 2, 3):
        with RunFolder.create(tmp_path / "run") as folder:
            folder.append_metrics(number, {})
            assert folder.set_aside() == tmp_path / f"run.{number}"
        assert not (tmp_path / "run").exists()
    assert RunFolder(tmp_path / "run.2").read_metrics() == [{"step": 2}]


def test_config_and_plugin_lock_are_read_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    assert folder.is_empty
    folder.write_config({"trainer": {"seed": 7}}, {"trainer.seed": "command line"})
    folder.write_plugins([{"name": "grpo", "version": "0.1.0"}])
    assert not folder.is_empty
    assert folder.config.read_text() == "trainer:\n  seed: 7  # command line\n"
    assert folder.read_plugins() == [{"name": "grpo", "version": "0.1.0"}]
    folder.close()


def test_failures_are_read_back(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.append_failures([])
        assert not folder.failures.exists()
        folder.append_failures([failure(3)])
        assert folder.read_failures() == [
            {"step": 3, "uid": "7", "sample": 0, "kind": "timeout", "plugin": "multiply",
             "message": "step took 60 s"}
        ]  # fmt: skip


def test_export_and_logs_move_where_the_config_says(tmp_path):
    folder = RunFolder(tmp_path / "run", export=tmp_path / "e", logs=tmp_path / "l")
    assert (folder.export, folder.logs) == (tmp_path / "e", tmp_path / "l")
    assert RunFolder(tmp_path / "run").export == tmp_path / "run" / "export"
    assert not folder.path.exists(), "naming a folder makes nothing"


def test_an_export_is_whole_or_absent_and_replaces_the_one_before(tmp_path):
    target = tmp_path / "export" / "global_step_5"
    RunFolder.write_aside(target, lambda folder: void((folder / "old.json").write_text("1")))
    RunFolder.write_aside(target, lambda folder: void((folder / "new.json").write_text("2")))
    assert [path.name for path in target.iterdir()] == ["new.json"]

    def fail(folder):
        (folder / "half.json").write_text("{")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        RunFolder.write_aside(target, fail)
    assert [path.name for path in target.iterdir()] == ["new.json"]
    assert [path.name for path in target.parent.iterdir()] == ["global_step_5"]


def void(_: object) -> None:
    """Drop a value."""


def test_a_full_disk_tears_no_line(tmp_path):
    with RunFolder.create(tmp_path / "run") as folder:
        folder.metrics.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left") as caught:
            folder.append_metrics(1, {"a": 1.0})
    assert is_disk_full(caught.value)


def test_lines_stay_whole_when_the_file_may_not_grow(tmp_path):
    import subprocess
    import sys

    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from skyrl_kernel.run.folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "for step in range(1, 10):\n"
        "    try:\n        folder.append_metrics(step, {'reward': 0.5})\n"
        "    except OSError:\n        sys.exit(step)\n"
    )
    (tmp_path / "run").mkdir()
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    # A line has 28 bytes: 3 lines are 84, the fourth would end at 112.
    assert ended.returncode == 4
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
