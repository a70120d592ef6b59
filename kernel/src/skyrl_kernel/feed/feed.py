"""The run's side of the feed: starts a process per logger, and waits for nobody but at the end.

What the loop's thread does for loggers: at a step one short line into the
journal; at an evaluation its trajectories are handed to a thread that writes
them. Everything else happens elsewhere (`skyrl_kernel.feed.process`).
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from skyrl_kernel.feed.backlog import LOGGERS, eval_rows
from skyrl_kernel.feed.cursor import Cursor
from skyrl_kernel.feed.job import Job, make_sink
from skyrl_kernel.feed.journal import Journal
from skyrl_kernel.feed.process import CLOSED, FAILED, RETRY_S, SLOW
from skyrl_kernel.feed.sink import LogEnd
from skyrl_kernel.feed.tables import spread, write_eval_rows
from skyrl_kernel.run.folder import RunFolder

if TYPE_CHECKING:
    from skyrl_kernel.plan import Plan
    from skyrl_kernel.plugins import PluginEntry
    from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo

INTERRUPTED_S = 5.0
"""Most seconds that loggers get after Ctrl-C."""
RESTART_S = 5.0
"""Before a process that died is started again; doubles each time, up to `process.RETRY_S`."""
SILENT_S = 5.0
"""A longer wait at the end is said."""


def sink_plugins(plan: "Plan") -> "list[PluginEntry]":
    """The loggers of ``trainer.logger`` that have a store."""
    modules = {entry.value for entry in plan.manager.observers("make_sink")}
    names = plan.tree.trainer.loggers
    return [one for one in plan.manager.entries if one.value in modules and one.name in names]


def check_sinks(plan: "Plan") -> None:
    """Have every logger say now if it cannot work as configured.

    Raises:
        SkyrlError: What the first of them says.
    """
    for entry in sink_plugins(plan):
        make_sink(plan.manager, entry.name, plan.config)


class Feed:
    """Keeps the stores of one run's loggers up to date.

    Args:
        plan: The run's.
        folder: The run's, held by this process.
        say: Shows a line to the user.
    """

    def __init__(self, plan: "Plan", folder: RunFolder, say: Callable[[str], None]) -> None:
        config = plan.tree.trainer
        self._plan = plan
        self._folder = folder
        self._say = say
        self._wait_s = config.logger_timeout_s
        self._eval_samples = config.num_logger_eval_samples
        self._returns = config.resume_mode == "from_path"
        self._entries = sink_plugins(plan)
        self._journal = Journal(folder.path / LOGGERS)
        self._thread = ThreadPoolExecutor(1, "skyrl-eval-rows")
        self._writing: Future[None] | None = None
        self._loggers: list[_Logger] = []

    def observe(self, hook: str, **event: Any) -> list[str]:
        """Be told of an event of the run; what the user must be told, in full sentences."""
        if not self._entries:
            return []
        texts = []
        try:
            if (handler := getattr(self, f"_{hook}", None)) is not None:
                handler(**event)
        except Exception as error:
            texts.append(f"loggers are not fed ({hook}): {type(error).__name__}: {error}")
        texts += [text for logger in self._loggers for text in logger.complaints()]
        return texts if hook != "on_run_end" else [*texts, *self._shortfalls()]

    def _on_run_start(self, run: "RunInfo") -> None:
        """Start the processes."""
        (self._folder.path / LOGGERS).mkdir(exist_ok=True)
        for entry in self._entries:
            back_to = run.start_step if self._returns else None
            job = Job.of(entry, self._plan.config, self._folder.path, back_to)
            self._loggers.append(_Logger(job))

    def _on_step_end(self, step: "StepInfo") -> None:
        """Note the time; see that what the evaluation left is on the disk before a checkpoint is."""
        self._settle()
        self._journal.step(step.step)

    def _on_eval_end(self, evaluation: "EvalInfo") -> None:
        """Begin to write its trajectories."""
        self._settle()
        if evaluation.step == 0:
            self._journal.step(0)
        if self._eval_samples:
            places = spread(len(evaluation.trajectories), self._eval_samples)
            chosen = [evaluation.trajectories[place] for place in places]
            path = eval_rows(self._folder, evaluation.step)
            self._writing = self._thread.submit(write_eval_rows, path, evaluation.step, chosen)

    def _on_run_end(self, end: "RunEnd") -> None:
        """Give the loggers a bounded time to catch up."""
        last = LogEnd(status=end.status, message=end.message, step=end.step)
        wait_s = min(self._wait_s, INTERRUPTED_S) if end.status == "interrupted" else self._wait_s
        began = time.monotonic()
        try:
            self._settle()
            self._folder.sync()  # the trajectories of the last step
            self._journal.end(last)
        finally:
            self._thread.shutdown()
            for logger in self._loggers:
                logger.end(last)
            if late := self._unfinished(began + min(SILENT_S, wait_s)):
                names = ", ".join(logger.job.name for logger in late)
                self._say(f"waiting up to {wait_s:g} s until loggers have everything: {names}")
            self._unfinished(began + wait_s)
            for logger in self._loggers:
                logger.kill()

    def _unfinished(self, deadline: float) -> "list[_Logger]":
        """The loggers that have not ended by then."""
        return [
            logger
            for logger in self._loggers
            if not logger.wait(max(0.0, deadline - time.monotonic()))
        ]

    def _shortfalls(self) -> list[str]:
        """Which stores lack something after the end, and how to bring it to them."""
        steps = [int(line["step"]) for line in self._folder.read_metrics()]
        texts = []
        for logger in self._loggers:
            name = logger.job.name
            cursor = Cursor.load(self._folder.path / LOGGERS / f"{name}.json")
            if cursor.closed:
                continue
            done = sum(step <= cursor.step for step in steps)
            given = f"{done} of {len(steps)} steps" if done < len(steps) else "every step"
            texts.append(
                f"logger '{name}' was given {given} when the run stopped waiting for it; nothing is "
                f"lost: 'skyrl log {self._folder.path} --plugin {name}' delivers the rest"
            )
        return texts

    def _settle(self) -> None:
        """Wait for the eval rows, which were written beside the evaluation's end."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


class _Logger:
    """One logger's process, and the thread that hears it and starts it again if it dies."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._reports: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._failing = False
        self._end: LogEnd | None = None
        self._ending = threading.Event()
        self._killed = False
        self._lock = threading.Lock()
        self._process = self._start()
        self._thread = threading.Thread(
            target=self._live, name=f"skyrl-logger-{job.name}", daemon=True
        )
        self._thread.start()

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "skyrl_kernel.feed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the run's to handle
        )
        _write(process, self.job.dump())
        return process

    def _live(self) -> None:
        """Hear the process; start another where it died before the run's end."""
        pause = RESTART_S
        while True:
            knows_end = self._end is not None
            closed = self._hear()
            code = self._process.wait()
            _close(self._process)
            if closed or knows_end or self._killed:
                return
            self._reports.put((FAILED, f"its process ended with exit code {code}"))
            self._ending.wait(pause)
            pause = min(2 * pause, RETRY_S)
            with self._lock:
                if self._killed:
                    return
                self._process = self._start()
                if self._end is not None:
                    _write(self._process, self._end_line())

    def _hear(self) -> bool:
        """Collect its reports until it is gone; True if it delivered everything."""
        closed = False
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            closed = closed or report["kind"] == CLOSED
            self._reports.put((report["kind"], report["text"]))
        return closed

    def end(self, end: LogEnd) -> None:
        """Tell it that the run ended."""
        with self._lock:
            self._end = end
            _write(self._process, self._end_line())
            self._ending.set()

    def _end_line(self) -> str:
        assert self._end is not None
        return json.dumps(dataclasses.asdict(self._end)) + "\n"

    def wait(self, seconds: float) -> bool:
        """Until it has delivered everything or given up, but no longer; True if it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        with self._lock:
            self._killed = True
            self._process.kill()
        self._thread.join()

    def complaints(self) -> list[str]:
        """New reports as sentences; of failures in a row, the first."""
        texts = []
        while not self._reports.empty():
            kind, text = self._reports.get()
            if kind == SLOW:
                texts.append(f"logger '{self.job.name}' hangs: {text}; the run goes on")
            elif kind == FAILED and not self._failing:
                texts.append(
                    f"logger '{self.job.name}' failed: {text}; the run goes on, the logger is tried "
                    "again, and what it misses stays in the run folder"
                )
            self._failing = kind == FAILED or (self._failing and kind == SLOW)
        return texts


def _close(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _write(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it is gone, and `_Logger._live` sees that
        process.stdin.write(line)
        process.stdin.flush()
