import io
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from rich.console import Console

from skyrl_kernel import progress
from skyrl_kernel.headline import format_headline, format_number, headline, sparkline
from skyrl_kernel.progress import Progress

METRICS = {
    "reward/avg_raw_reward": 0.25,
    "environment/exact_match": 0.2,
    "policy/policy_kl": 3.2e-4,
    "policy/grad_norm": 1.5,
    "timing/step": 0.31,
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"

TRAIN = """
import time
from skyrl_kernel.progress import Progress
with Progress("demo", 3) as progress:
    for step in range(1, 4):
        with progress.stage("generate", total=256) as stage:
            for _ in range(4):
                stage.advance(64)
                time.sleep(0.07)
        progress.step(step, {"reward/avg_raw_reward": step / 4, "timing/step": 0.2})
        if step == 2:
            progress.warning("constant rewards in [3] groups")
            print("a stray print")
        PERHAPS_FAIL
"""


def on_a_terminal(code: str, *, interrupt_at: str | None = None, **environment: str) -> str:
    """What a 100 columns wide terminal receives from a Python program."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={
            "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "PATH": os.environ["PATH"],
            "PYTHONIOENCODING": "utf-8", **environment,
        },
    )  # fmt: skip
    os.close(follower)
    received = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        received += data
        if interrupt_at and interrupt_at.encode() in received:
            child.send_signal(signal.SIGINT)
            interrupt_at = None
    child.wait()
    os.close(leader)
    return received.decode()


def screen(received: str) -> str:
    """What is left on the screen: lines that were redrawn are dropped."""
    rows, row = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", received):
        if token == "\n":
            row += 1
            rows.extend([""] * (row + 1 - len(rows)))
        elif token.endswith("A") and token.startswith("\x1b"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\x1b[2K":
            rows[row] = ""
        elif not token.startswith("\x1b") and token != "\r":
            rows[row] += token
    return "\n".join(line.rstrip() for line in rows).strip()


def plain_console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, markup=False), stream


def test_without_a_terminal_there_is_one_plain_line_per_step():
    console, stream = plain_console()
    with Progress("demo", 2, console=console) as shown:
        for step in (1, 2):
            with shown.stage("generate", total=256) as stage:
                stage.advance(256)
            shown.step(step, METRICS)
        shown.message("saved [20]")
        shown.warning("rewards are constant")
    assert stream.getvalue() == (
        "demo: step 1/2  reward 0.250  exact_match 0.200  kl 3.2e-04  seconds 0.310\n"
        "demo: step 2/2  reward 0.250  exact_match 0.200  kl 3.2e-04  seconds 0.310\n"
        "saved [20]\n"
        "warning: rewards are constant\n"
    )


def test_plain_lines_are_neither_wrapped_nor_cut_however_long():
    console, stream = plain_console()
    Progress("demo", 2, console=console).message("word " * 100)
    assert stream.getvalue() == "word " * 100 + "\n"


def test_where_a_logger_prints_the_steps_progress_prints_none():
    console, stream = plain_console()
    with Progress("demo", 2, console=console, lines=False) as shown:
        shown.step(1, METRICS)
    assert stream.getvalue() == ""


def test_lines_can_be_spaced_out_and_the_last_step_always_has_one():
    console, stream = plain_console()
    with Progress("warm start", 500, console=console, line_interval_s=3600.0) as shown:
        for step in range(1, 501):
            shown.step(step, {"loss": 1.0})
    assert stream.getvalue() == (
        "warm start: step 1/500  loss 1.00\nwarm start: step 500/500  loss 1.00\n"
    )


def test_on_a_terminal_the_display_is_redrawn_and_lines_stay_above_it():
    received = on_a_terminal(TRAIN.replace("PERHAPS_FAIL", ""))
    assert "generate" in received
    assert "/256" in received
    left = screen(received)
    assert left.splitlines()[:2] == ["warning: constant rewards in [3] groups", "a stray print"]
    assert left.count("step 3/3") == 1, "the display is drawn over itself"
    assert "generate" not in left, "no stage is running any more"
    assert "reward 0.250 ▁▅█ 0.750" in left
    assert received.rindex(SHOW_CURSOR) > received.rindex(HIDE_CURSOR)


def test_an_exception_gives_the_terminal_back():
    received = on_a_terminal(TRAIN.replace("PERHAPS_FAIL", "raise RuntimeError('no memory')"))
    assert received.rindex(SHOW_CURSOR) > received.rindex(HIDE_CURSOR)
    assert "RuntimeError: no memory" in screen(received)


def test_ctrl_c_gives_the_terminal_back():
    received = on_a_terminal(TRAIN.replace("PERHAPS_FAIL", ""), interrupt_at="/256")
    assert received.rindex(SHOW_CURSOR) > received.rindex(HIDE_CURSOR)
    assert "KeyboardInterrupt" in screen(received)
    assert "step 3/3" not in received


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"SKYRL_NO_PROGRESS": "1"}])
def test_a_terminal_that_is_dumb_or_told_so_gets_plain_lines(environment):
    received = on_a_terminal(TRAIN.replace("PERHAPS_FAIL", ""), **environment)
    assert received.splitlines()[0] == "demo: step 1/3  reward 0.250  seconds 0.200"
    without_colour = re.sub(r"\x1b\[[0-9;]*m", "", received.replace("\r\n", "\n"))
    assert not CONTROL.search(without_colour)
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in received


def test_a_pipe_gets_no_control_characters_whatever_the_terminal_behind_it():
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN.replace("PERHAPS_FAIL", "")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "20"},
    )
    assert not CONTROL.search(ended.stdout)
    assert [line for line in ended.stdout.splitlines() if line.startswith("demo")] == [
        f"demo: step {step}/3  reward {step / 4:.3f}  seconds 0.200" for step in (1, 2, 3)
    ]


def test_the_curve_is_drawn_in_ascii_where_the_terminal_knows_no_more():
    received = on_a_terminal(TRAIN.replace("PERHAPS_FAIL", ""), PYTHONIOENCODING="ascii")
    assert "reward 0.250 _=# 0.750" in screen(received)


def forced_live(**arguments) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    return Progress("demo", 4, console=console, live=True, **arguments), stream


def wait_until_drawn(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, f"{text} was not drawn within 10 s"
        time.sleep(0.02)


def last_drawn(stream: io.StringIO) -> str:
    return screen(stream.getvalue())


def test_steps_are_shown_live_or_as_lines_but_not_both():
    shown, stream = forced_live()
    assert not progress.is_live()
    with shown:
        assert progress.is_live()
        shown.step(1, METRICS)
        wait_until_drawn(stream, "step 1/4")
    assert not progress.is_live()
    assert last_drawn(stream).count("step 1/4") == 1
    assert "demo: step" not in stream.getvalue()


def test_the_curve_is_of_the_first_number_that_changes():
    shown, stream = forced_live()
    with shown:
        for step in (1, 2, 3):
            shown.step(step, {"reward/avg_raw_reward": 0.0, "policy/policy_loss": 3.0 - step})
    assert "loss 2.00 █▅▁ 0.000" in last_drawn(stream)


def test_one_display_inside_another_is_drawn_below_it_and_goes_away():
    outer, stream = forced_live()
    with outer:
        wait_until_drawn(stream, "step 0/4")
        with Progress("warm start", 9, console=outer.console, live=True) as inner:
            inner.step(3, {"loss": 2.5})
            wait_until_drawn(stream, "step 3/9")
    assert "warm start" not in last_drawn(stream)
    assert "step 0/4" in last_drawn(stream)


def test_entering_the_same_display_again_changes_nothing():
    shown, stream = forced_live()
    with shown:
        with shown:
            shown.step(1, METRICS)
        assert progress.is_live()
    assert not progress.is_live()
    assert last_drawn(stream).count("demo") == 1


def test_several_stages_may_run_at_once_and_are_counted_apart():
    shown, stream = forced_live()
    with shown, shown.stage("generate", total=8) as generate, shown.stage("loss", total=2):
        generate.advance(3)
        shown.advance()  # the one that began last
        wait_until_drawn(stream, "3/8")
        wait_until_drawn(stream, "1/2")


def test_counting_from_many_threads_loses_nothing():
    shown, _ = forced_live()
    with shown.stage("generate", total=40_000) as stage:
        threads = [
            threading.Thread(target=lambda: [stage.advance() for _ in range(10_000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stage.done == 40_000


def test_counting_a_batch_costs_less_than_a_millisecond():
    shown, _ = forced_live()
    with shown, shown.stage("generate", total=256) as stage:
        best = min(count_a_batch(stage) for _ in range(20))
    assert best < 1e-3  # 0.06 ms here


def count_a_batch(stage) -> float:
    begun = time.perf_counter()
    for _ in range(256):
        stage.advance()
    return time.perf_counter() - begun


def test_the_time_left_is_judged_by_the_latest_steps():
    shown, _ = forced_live()
    shown._marks.extend([(0.0, 0), (100.0, 1), (110.0, 2), (120.0, 3)])
    # Step 1 took 100 s with its start-up; steps 2 and 3 took 10 s each; one is left.
    assert shown._seconds_left() == 10.0


def test_a_continued_run_begins_where_it_was():
    shown, stream = forced_live(start_step=3)
    with shown:
        pass
    assert "step 3/4" in last_drawn(stream)


def test_importing_progress_imports_neither_rich_nor_numpy():
    code = (
        "import sys, skyrl_kernel.progress, skyrl_kernel.logs, skyrl_kernel.run;"
        "print({'rich', 'numpy', 'structlog', 'pyarrow', 'yaml', 'torch'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_watched_numbers_come_in_a_fixed_order_whatever_the_metrics():
    assert list(headline(dict(reversed(METRICS.items())))) == [
        "reward", "exact_match", "kl", "seconds"
    ]  # fmt: skip
    assert format_headline({"train/loss": 3.25}) == "train/loss 3.25"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.9996, "1.000"), (-0.25, "-0.250"), (12, "12"), (99.95, "100.0"),
     (1e9, "1.00e+09"), (float("inf"), "inf"), (-1.23e-5, "-1.2e-05")],
)  # fmt: skip
def test_numbers_take_few_characters(value, text):
    assert format_number(value) == text


def test_a_curve_has_gaps_where_numbers_are_not_finite_and_is_flat_where_they_are_equal():
    nan = float("nan")
    assert sparkline([0.0, nan, 1.0]) == "▁ █"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([nan]) == sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)], width=40)) == 40
