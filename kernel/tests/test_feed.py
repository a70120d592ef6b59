"""Loggers with a store, fed by processes of their own while real runs of the scripted stack go on.

The store is the plugin ``diary``: a file in the run folder. A file beside the run folder says what
goes wrong in it, and is read at each call, so that a trouble can begin and end while a run goes on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from skyrl_kernel import session
from skyrl_kernel.cli import _exit_code
from skyrl_kernel.cli.show import describe_plan
from skyrl_kernel.errors import ConfigError, HookError
from skyrl_kernel.feed import feed, process
from skyrl_kernel.plan import make_plan
from skyrl_kernel.run import RunFolder
from skyrl_kernel.runner import RunResult
from skyrl_kernel.slots import LOGGERS
from skyrl_kernel.testing.distributions import make_distribution, make_plugins
from skyrl_kernel.testing.scripted import installed, run_scripted

DIARY = """
import json
import os
import time

from pydantic import BaseModel

from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl


class Config(BaseModel, extra="forbid"):
    api_key: str | None = None


class Diary:
    def __init__(self, name, config):
        if config.api_key == "":
            raise ConfigError("trainer.diary.api_key is empty: give one")
        self.name = name

    def open(self, run):
        self.folder = run.folder
        self.suffer("open")
        self.write("open", run.resumed, id=run.id, name=run.name, last_step=run.last_step,
                   tags=list(run.tags), config=run.config, pid=os.getpid(), nice=os.nice(0))

    def log(self, record):
        self.suffer(f"log {record.step}")
        tables = {table.name: [dict(zip(table.columns, row)) for row in table.rows]
                  for table in record.tables}
        self.write("log", record.step, time=record.time, metrics=dict(record.metrics),
                   tables=tables)

    def close(self, end):
        self.suffer("close")
        self.write("close", end.status, step=end.step, message=end.message)

    def suffer(self, call):
        path = self.folder.parent / f"{self.name}.trouble"
        trouble = json.loads(path.read_text()) if path.exists() else {}
        kind, times = trouble.get(call, ("none", 0))
        if times == 0:
            return
        trouble[call] = (kind, times - 1)
        path.write_text(json.dumps(trouble))
        print(f"suffering {kind} with 0123456789abcdef", flush=True)
        if kind == "raises":
            raise OSError("no route to the store of 0123456789abcdef\\nmore")
        if kind == "hangs":
            time.sleep(600)
        if kind == "dies":
            os._exit(9)

    def write(self, call, what, **fields):
        with (self.folder / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps({"call": call, "what": what, **fields}) + "\\n")


@hookimpl
def config_sections():
    return {"trainer.diary": Config}


@hookimpl
def make_sink(name, settings):
    return Diary(name, settings[Config]) if name in {"diary", "second"} else None
"""
JUNK = """
from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def make_sink(name):
    return print if name == "junk" else None
"""
KILLS = """
import os
import signal

from skyrl_kernel.hookspecs import hookimpl

@hookimpl
def on_step_end(step):
    if step.step == 3 and "KILLED_AT_3" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
"""
OBSERVER = "from skyrl_kernel.hookspecs import hookimpl\n@hookimpl\ndef on_step_end(step): ...\n"
FOREVER = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("site")) as folder:
        manifest = '[diary]\nconfig = ["trainer.diary"]\n[second]\n'
        make_distribution(
            folder,
            "skyrl-diary",
            modules={"skyrl_diary.plugin": DIARY},
            files={"skyrl_diary/plugin.toml": manifest},
            entry_points={LOGGERS: dict.fromkeys(("diary", "second"), "skyrl_diary.plugin")},
        )
        make_plugins(folder, {"junk": JUNK, "watcher": OBSERVER, "kills": KILLS}, LOGGERS)
        yield


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "RESTART_S", 0.1)


def train(
    folder: Path, *overrides: str, logger: str = "diary", steps: int = 3, wait_s: float = 60
) -> RunResult:
    return run_scripted(
        folder,
        f"trainer.logger={logger}",
        f"trainer.max_training_steps={steps}",
        f"trainer.logger_timeout_s={wait_s}",
        "trainer.run_name=run",
        *overrides,
    )


def trouble(folder: Path, name: str = "diary", **calls: tuple[str, int]) -> None:
    """``log_2=("hangs", 1)``: the call ``log`` of step 2 hangs once."""
    content = {call.replace("_", " "): what for call, what in calls.items()}
    (folder / f"{name}.trouble").write_text(json.dumps(content))


def diary(folder: Path, name: str = "diary") -> list[dict[str, Any]]:
    path = folder / "run" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(entries: list[dict[str, Any]]) -> list[int]:
    return [entry["what"] for entry in entries if entry["call"] == "log"]


def cursor(folder: Path, name: str = "diary") -> Mapping[str, Any]:
    return json.loads((folder / "run" / "loggers" / f"{name}.json").read_text())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- a run in which nothing goes wrong ------------------------------------------------------


def test_a_store_is_given_every_step_once_with_its_metrics_times_and_tables(
    tmp_path: Path,
) -> None:
    before = time.time()
    train(tmp_path, "trainer.tags=['a','b']", "trainer.eval_interval=2")
    entries = diary(tmp_path)
    opened, closed = entries[0], entries[-1]
    assert [entry["call"] for entry in entries] == ["open", *["log"] * 4, "close"]
    assert (opened["name"], opened["tags"], opened["what"]) == ("run", ["a", "b"], False)
    assert (closed["what"], closed["step"], closed["message"]) == ("finished", 3, "3 of 3 steps")

    metrics = RunFolder(tmp_path / "run").read_metrics()
    for entry, line in zip(entries[1:-1], metrics, strict=True):
        assert {"step": entry["what"], **entry["metrics"]} == line
    times = [entry["time"] for entry in entries[1:-1]]
    assert times == sorted(times)
    assert before - 1 < times[0] <= times[-1] < time.time() + 1

    tables = {entry["what"]: entry["tables"] for entry in entries[1:-1]}
    assert set(tables[0]) == {"trajectories/eval"}
    assert set(tables[1]) == {"trajectories/train"}
    assert set(tables[2]) == set(tables[3]) == {"trajectories/train", "trajectories/eval"}
    stored = RunFolder(tmp_path / "run").read_trajectories(2)
    shown = tables[2]["trajectories/train"]
    assert [(row["uid"], row["sample"], row["reward"]) for row in shown] == [
        (row["uid"], row["sample"], row["reward"]) for row in stored
    ]
    assert shown[0]["prompt"] == stored[0]["messages"][0]["content"]
    assert shown[0]["completion"] == stored[0]["turns"][0]["action"]


def test_what_an_evaluation_said_is_on_the_disk_before_the_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from there does not evaluate again."""
    write, save = feed.write_eval_rows, session.save_checkpoint
    there: list[bool] = []

    def slowly(path: Path, *rest: Any) -> None:
        time.sleep(0.3)
        write(path, *rest)

    def looking(checkpoints: Path, step: int, *rest: Any) -> Path:
        there.append((checkpoints.parent / "loggers" / "eval" / f"step_{step}.jsonl").exists())
        return save(checkpoints, step, *rest)

    monkeypatch.setattr(feed, "write_eval_rows", slowly)
    monkeypatch.setattr(session, "save_checkpoint", looking)
    train(tmp_path, "trainer.ckpt_interval=1", "trainer.eval_interval=1", steps=2)
    assert there == [True, True]


@pytest.mark.slow
def test_several_loggers_at_once_are_each_given_everything(tmp_path: Path) -> None:
    train(tmp_path, logger="['diary','watcher','second']")
    assert steps(diary(tmp_path)) == steps(diary(tmp_path, "second")) == [0, 1, 2, 3]
    assert cursor(tmp_path)["id"] != cursor(tmp_path, "second")["id"]
    assert not (tmp_path / "run" / "loggers" / "watcher.json").exists()


def test_without_such_a_logger_nothing_is_written_for_one(tmp_path: Path) -> None:
    train(tmp_path, logger="watcher")
    assert not (tmp_path / "run" / "loggers").exists()


@pytest.mark.slow
def test_how_many_trajectories_are_shown_is_the_users_choice(tmp_path: Path) -> None:
    train(
        tmp_path,
        "trainer.num_logger_train_samples=2",
        "trainer.num_logger_eval_samples=0",
        steps=1,
    )
    entries = diary(tmp_path)
    assert [len(entry["tables"]) for entry in entries[1:-1]] == [0, 1]
    assert len(entries[2]["tables"]["trajectories/train"]) == 2
    assert not (tmp_path / "run" / "loggers" / "eval").exists()


@pytest.mark.slow
def test_where_trajectories_are_not_written_none_is_shown(tmp_path: Path) -> None:
    train(tmp_path, "trainer.dump_trajectories=false", "trainer.num_logger_eval_samples=0")
    assert all(not entry["tables"] for entry in diary(tmp_path)[1:-1])


def test_secrets_reach_neither_the_store_nor_what_its_process_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(tmp_path, log_1=("raises", 1))
    train(tmp_path, "trainer.diary.api_key=0123456789abcdef")
    assert diary(tmp_path)[0]["config"]["trainer"]["diary"] == {"api_key": "***"}
    printed = (tmp_path / "run" / "loggers" / "diary.log").read_text()
    assert "suffering raises with ***" in printed
    assert "OSError: no route to the store of ***; the run goes on" in capsys.readouterr().out
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"0123456789abcdef" not in path.read_bytes(), path


def test_a_dry_run_shows_which_stores_would_be_fed() -> None:
    made = make_plan(["scripted"], overrides=["trainer.logger=['diary','watcher']"])
    assert describe_plan(made).splitlines()[-1] == "stores, fed behind the run: logger/diary"


# --- what is refused ------------------------------------------------------------------------


def test_a_logger_that_cannot_work_as_configured_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.diary\.api_key is empty: give one"):
        train(tmp_path, "trainer.diary.api_key=''")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_sink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"'junk' returned a builtin_function.* without open, log"):
        train(tmp_path, logger="junk")


# --- a store that fails, hangs or dies --------------------------------------------------------


def test_a_store_that_raises_is_tried_again_and_misses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(tmp_path, open=("raises", 1), log_2=("raises", 1))
    train(tmp_path, logger="['diary','second']")
    assert steps(diary(tmp_path)) == steps(diary(tmp_path, "second")) == [0, 1, 2, 3]
    out = capsys.readouterr().out
    assert "logger 'diary' failed: OSError: no route to the store of" in out
    assert "delivers the rest" not in out


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("calls", "given", "loggers"),
    [
        ({"log_2": ("hangs", FOREVER)}, "2 of 4 steps", "diary"),
        slow({"log_2": ("raises", FOREVER)}, "2 of 4 steps", "['diary','second']"),
        slow({"log_2": ("dies", FOREVER)}, "2 of 4 steps", "diary"),
        slow({"open": ("raises", FOREVER)}, "0 of 4 steps", "diary"),
        slow({"close": ("hangs", FOREVER)}, "every step", "diary"),
    ],
)
def test_the_run_ends_in_time_says_what_is_missing_and_the_rest_is_delivered_later(
    calls: dict[str, tuple[str, int]],
    given: str,
    loggers: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trouble(tmp_path, **calls)
    hangs = "hangs" in str(calls)
    began = time.monotonic()
    result = train(tmp_path, logger=loggers, wait_s=10 if hangs else 60)
    assert not hangs or time.monotonic() - began < 30
    assert result.status == "finished"
    out = capsys.readouterr().out
    assert f"logger 'diary' was given {given} when the run stopped waiting for it" in out
    assert f"'skyrl log {result.folder} --plugin diary' delivers the rest" in out
    assert "logger 'second'" not in out
    if "second" in loggers:
        assert steps(diary(tmp_path, "second")) == [0, 1, 2, 3]
    if "open" not in calls:
        assert gone(diary(tmp_path)[0]["pid"])

    trouble(tmp_path)  # the store is well again
    assert _exit_code(["log", str(result.folder), "--plugin", "diary"]) == 0
    assert steps(diary(tmp_path)) == [0, 1, 2, 3]
    assert diary(tmp_path)[-1]["what"] == "finished"
    assert len({entry["id"] for entry in diary(tmp_path) if entry["call"] == "open"}) == 1


@pytest.mark.slow
def test_a_process_that_dies_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble(tmp_path, log_1=("dies", 1))
    train(tmp_path)
    assert steps(diary(tmp_path)) == [0, 1, 2, 3]
    assert "its process ended with exit code 9; the run goes on" in capsys.readouterr().out


def test_telling_a_logger_that_hangs_costs_the_loop_next_to_nothing(tmp_path: Path) -> None:
    """The bound is a hundred times what it costs, for machines that do other things."""
    trouble(tmp_path, open=("hangs", FOREVER))
    spent = []
    observe = feed.Feed.observe

    def timed(self: feed.Feed, hook: str, **event: Any) -> list[str]:
        began = time.perf_counter()
        try:
            return observe(self, hook, **event)
        finally:
            if hook == "on_step_end":
                spent.append(time.perf_counter() - began)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed.Feed, "observe", timed)
        train(tmp_path, "data.val_data=[]", "trainer.epochs=3", steps=12, wait_s=0.2)
    assert len(spent) == 12
    assert sorted(spent)[6] < 0.005


# --- runs that go on --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_run_in_the_store(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    train(tmp_path, steps=4)
    entries = diary(tmp_path)
    first, second = [entry for entry in entries if entry["call"] == "open"]
    assert (second["id"], second["what"], second["last_step"]) == (first["id"], True, 2)
    assert steps(entries) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_steps_that_are_done_again_after_a_crash_are_not_delivered_again(tmp_path: Path) -> None:
    """Checkpoints after 2 and 4; the folder is as a kill after step 3 leaves it."""
    train(tmp_path, "trainer.ckpt_interval=2", steps=3)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "global_step_3").rename(tmp_path / "lost")
    train(tmp_path, "trainer.ckpt_interval=2", steps=4)
    assert [line["step"] for line in RunFolder(tmp_path / "run").read_metrics()] == [0, 1, 2, 3, 4]
    assert steps(diary(tmp_path)) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on_in_the_store(tmp_path: Path) -> None:
    words = ["trainer.ckpt_interval=2", "trainer.max_training_steps=4", "trainer.run_name=run"]
    words.append("trainer.logger=['diary','kills']")
    script = (
        "from pathlib import Path\n"
        "from skyrl_kernel.testing.scripted import run_scripted\n"
        f"run_scripted(Path({str(tmp_path)!r}), *{words!r})\n"
    )
    path = os.pathsep.join(sys.path)
    killed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"KILLED_AT_3": "1", "PYTHONPATH": path},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert checkpoints == ["global_step_2"]
    run_scripted(tmp_path, *words)
    entries = diary(tmp_path)
    opens = [entry for entry in entries if entry["call"] == "open"]
    assert len({entry["id"] for entry in opens}) == 1
    assert all(gone(entry["pid"]) for entry in opens)
    assert steps(entries) == [0, 1, 2, 3, 4]
    assert entries[-1]["what"] == "finished"


@pytest.mark.slow
def test_a_logger_that_is_added_later_is_given_the_run_from_its_first_step(
    tmp_path: Path,
) -> None:
    train(tmp_path, logger="watcher", steps=2)
    train(tmp_path, logger="diary", steps=3)
    assert steps(diary(tmp_path)) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_that_goes_back_is_another_run_in_the_store(tmp_path: Path) -> None:
    train(tmp_path, "trainer.ckpt_interval=1")
    train(
        tmp_path,
        "trainer.resume_mode=from_path",
        f"trainer.resume_path={tmp_path / 'run' / 'checkpoints' / 'global_step_1'}",
    )
    entries = diary(tmp_path)
    opens = [entry for entry in entries if entry["call"] == "open"]
    assert [entry["name"] for entry in opens] == ["run", "run.2"]
    assert opens[0]["id"] != opens[1]["id"]
    assert steps(entries) == [0, 1, 2, 3, 0, 1, 2, 3]


# --- skyrl log ----------------------------------------------------------------------------------


def test_a_finished_run_can_be_delivered_to_a_logger_that_it_did_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, logger="watcher", steps=2)
    assert _exit_code(["log", str(result.folder), "--plugin", "diary"]) == 0
    assert steps(diary(tmp_path)) == [0, 1, 2]
    assert diary(tmp_path)[0]["config"]["trainer"]["logger"] == "watcher"
    assert "diary: delivered 3 steps, and has all 3 of" in capsys.readouterr().out
    assert _exit_code(["log", str(result.folder), "--plugin", "diary"]) == 0
    assert "diary: delivered 0 steps, and has all 3 of" in capsys.readouterr().out
    assert steps(diary(tmp_path)) == [0, 1, 2]


def test_what_cannot_be_delivered_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tmp_path, "trainer.diary.api_key=0123456789abcdef", steps=1)
    folder = str(result.folder)

    assert _exit_code(["log", str(tmp_path)]) == 2
    assert "is no run folder: it has no config.yaml" in capsys.readouterr().err
    assert _exit_code(["log", folder, "--plugin", "watcher"]) == 2
    assert "logger 'watcher' has no store to deliver to" in capsys.readouterr().err
    assert _exit_code(["log", folder, "trainer.epochs=3"]) == 2
    assert (
        "trainer.epochs changes nothing that diary would be given; there are trainer.diary.…"
        in (capsys.readouterr().err)
    )
    assert _exit_code(["log", folder]) == 2
    assert "does not hold the secrets of the run: give trainer.diary.api_key" in (
        capsys.readouterr().err
    )
    trouble(tmp_path, "second", log_1=("raises", 1))
    words = ["log", folder, "--plugin", "second", "trainer.diary.api_key=0123456789abcdef"]
    assert _exit_code(words) == 1
    assert "It has 1 of 2 steps; the same command delivers the rest" in capsys.readouterr().err
    with RunFolder.create(result.folder):
        assert _exit_code(words) == 2
        assert "is in use by process" in capsys.readouterr().err
    assert _exit_code(words) == 0
    assert steps(diary(tmp_path, "second")) == [0, 1]


def test_the_waits_of_a_loggers_process_are_in_order() -> None:
    assert process.POLL_S < 1 < process.RETRY_S < process.STUCK_S
    assert process.SLOW_S < process.STUCK_S
