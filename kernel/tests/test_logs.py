import io
import json
import logging
import sys
import warnings

import pytest
from rich.console import Console

from skyrl_kernel.logs import RunLogs, get_logger, logging_to
from skyrl_kernel.progress import Progress


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logs(tmp_path, screen):
    with RunLogs(tmp_path, console=Console(file=screen)) as logs:
        yield logs


def lines(logs: RunLogs) -> list[dict]:
    return [json.loads(line) for line in logs.path.read_text().splitlines()]


def test_an_event_is_one_json_line_with_its_fields(logs, screen):
    get_logger("skyrl_grpo").bind(plugin="grpo").info("resumed", step=20, loss=float("nan"))
    (line,) = lines(logs)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "skyrl_grpo", "event": "resumed",
        "plugin": "grpo", "step": 20, "loss": "NaN",
    }  # fmt: skip
    assert screen.getvalue() == ""


def test_warnings_of_plugins_are_shown_and_written(logs, screen):
    get_logger("skyrl_env_foo").warning("no answers", step=3, name="foo")
    assert screen.getvalue() == "warning: no answers step=3 name=foo\n"
    assert lines(logs)[0]["level"] == "warning"


def test_a_field_may_be_called_like_what_every_line_has(logs):
    get_logger("x").info("odd", level="high", time=3, logger="y")
    (line,) = lines(logs)
    assert (line["level"], line["level_"], line["time_"], line["logger_"]) == (
        "info",
        "high",
        3,
        "y",
    )


def test_an_exception_is_one_line_on_the_screen_and_a_traceback_in_the_file(logs, screen):
    try:
        raise RuntimeError("no memory")
    except RuntimeError:
        get_logger("skyrl_fsdp").exception("update failed", step=3)
    assert screen.getvalue() == f"error: update failed step=3 (traceback in {logs.path})\n"
    assert "RuntimeError: no memory" in lines(logs)[0]["exception"]


def test_libraries_are_written_and_only_their_errors_shown(logs, screen):
    library = logging.getLogger("some.library")
    library.info("loaded %d shards", 3, extra={"size": 4})
    library.warning("deprecated")
    library.error("lost %s", "connection")
    assert [(line["event"], line["logger"]) for line in lines(logs)] == [
        ("loaded 3 shards", "some.library"),
        ("deprecated", "some.library"),
        ("lost connection", "some.library"),
    ]
    assert lines(logs)[0]["size"] == 4
    assert screen.getvalue() == "error: some.library: lost connection\n"


@pytest.mark.filterwarnings("always")
def test_python_warnings_go_into_the_file(tmp_path, screen):
    with RunLogs(tmp_path, console=Console(file=screen)) as logs:
        warnings.warn("100% odd", UserWarning, stacklevel=1)
        (line,) = lines(logs)
    assert (line["event"], line["category"]) == ("100% odd", "UserWarning")
    assert line["file"] == __file__
    assert screen.getvalue() == ""


def test_a_library_that_prints_its_own_log_is_taken_over_and_given_back(tmp_path, screen, capsys):
    library = logging.getLogger("printing_library")
    own = logging.StreamHandler(sys.stderr)
    library.addHandler(own)
    library.propagate = False
    try:
        with RunLogs(tmp_path, console=Console(file=screen)) as logs:
            library.warning("first")
            late = logging.getLogger("late_library")
            late.addHandler(logging.StreamHandler(sys.stderr))
            logs.adopt_libraries()
            late.warning("second")
            assert [line["event"] for line in lines(logs)] == ["first", "second"]
        assert capsys.readouterr().err == ""
        assert (library.handlers, library.propagate) == ([own], False)
    finally:
        library.removeHandler(own)
        library.propagate = True
        late.handlers.clear()


def test_secrets_reach_neither_file_nor_screen(tmp_path, screen, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with RunLogs(tmp_path, console=Console(file=screen)) as logs:
        log = get_logger("skyrl_wandb")
        log.warning("logging in with 0123456789abcdef", api_key="other", url="https://u:pw1@h/")
        logging.getLogger("http").error("header: Bearer abcdefgh12345678")
        try:
            raise ValueError("bad token=abcd")
        except ValueError:
            log.exception("failed")
        written = logs.path.read_text()
    for secret in ("0123456789abcdef", "other", "pw1", "abcdefgh12345678", "abcd"):
        assert secret not in written
        assert secret not in screen.getvalue()


def test_leaving_puts_logging_back_as_it_was(tmp_path):
    root = logging.getLogger()
    before = (list(root.handlers), root.level, warnings.showwarning)
    with RunLogs(tmp_path), pytest.raises(RuntimeError), RunLogs(tmp_path / "inner"):
        raise RuntimeError("leaves through both")
    assert (list(root.handlers), root.level, warnings.showwarning) == before


def test_a_log_is_appended_to_when_a_run_goes_on(tmp_path):
    for event in ("first", "second"):
        with RunLogs(tmp_path) as logs:
            get_logger("x").info(event)
    assert [line["event"] for line in lines(logs)] == ["first", "second"]


def test_the_log_of_another_process_has_a_file_and_a_field_of_its_own(tmp_path, screen):
    console = Console(file=screen)
    with RunLogs(tmp_path, console=console, file="rank_1.jsonl", fields={"process": "rank 1"}):
        get_logger("x").info("begun", pid=7)
        logging.getLogger("a_library").error("no")
    (ours, theirs) = map(json.loads, (tmp_path / "rank_1.jsonl").read_text().splitlines())
    assert (ours["event"], ours["process"], ours["pid"]) == ("begun", "rank 1", 7)
    assert (theirs["event"], theirs["process"]) == ("no", "rank 1")
    assert not (tmp_path / "log.jsonl").exists()


def test_a_full_disk_is_said_once_and_does_not_stop_the_run(tmp_path, screen):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with logging_to(tmp_path, Progress("demo", 1, console=Console(file=screen, width=200))):
        for step in range(3):
            get_logger("x").info("step", step=step)
    assert screen.getvalue().count("No space left on device") == 1
    assert "log.jsonl is not written any more" in screen.getvalue()
