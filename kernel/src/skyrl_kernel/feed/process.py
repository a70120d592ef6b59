"""A logger's own process: ``python -m skyrl_kernel.feed``.

Standard input brings the `Job` and, when the run ends, how it did; at its end
without that word the run was killed, and so is this. Standard output carries
reports to the run. Whatever libraries print goes to ``loggers/<name>.log``,
secrets masked.

| waits for | until | then |
|---|---|---|
| new lines of ``metrics.jsonl`` | `POLL_S` | looks again |
| a sink that raised | 1 s, doubling to `RETRY_S` | makes another, goes on with the same record |
| a sink that does not answer | `SLOW_S` to say so, `STUCK_S` | ends itself; the run starts it again |
"""

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from skyrl_kernel.feed.backlog import LOGGERS
from skyrl_kernel.feed.delivery import Delivery
from skyrl_kernel.feed.job import Job, make_sink
from skyrl_kernel.feed.sink import LogEnd
from skyrl_kernel.masking import known_secrets, mask_secrets
from skyrl_kernel.run.folder import RunFolder

POLL_S = 0.25
"""Looking costs one ``open`` and one ``read``, in this process."""
RETRY_S = 60.0
"""Most seconds between two tries of a sink that raises."""
SLOW_S = 30.0
"""A call that takes longer is reported."""
STUCK_S = 300.0
"""A call that takes longer is given up, and the process with it."""
NICENESS = 5
"""Of this process: the run comes first where they share a core."""
LAST_OUTPUT_S = 0.5
"""Longest wait for what was printed last: a library's own process may hold the pipe open."""
LAST_TRIES = 3
"""Of a sink that raises after the run has ended."""

CLOSED, FAILED, SLOW, FINE = "closed", "failed", "slow", "fine"
"""Kinds of report."""


class Report(Protocol):
    """One line for the run."""

    def __call__(self, kind: str, text: str = "") -> None:
        """``kind`` is one of those above."""
        ...


def main() -> None:
    """Deliver until the run has ended and everything is delivered."""
    reports = os.fdopen(os.dup(1), "w")
    job = Job.parse(sys.stdin.readline())
    known = (*job.secrets(), *known_secrets())
    kept = _keep_output(Path(job.folder) / LOGGERS / f"{job.name}.log", known)

    def report(kind: str, text: str = "") -> None:
        masked = mask_secrets(text, known)
        print(json.dumps({"kind": kind, "text": masked}), file=reports, flush=True)

    code = 1
    try:
        _deliver(job, report_to=report)
        code = 0
    except Exception as error:
        report(FAILED, _told(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.close(1)
        os.close(2)
        kept.join(LAST_OUTPUT_S)
        os._exit(code)  # what a library still does at exit must not keep the run waiting


def _deliver(job: Job, report_to: Report) -> None:
    ends = _listen()
    os.nice(NICENESS)
    manager, config = job.load()
    delivery = Delivery(
        RunFolder(Path(job.folder)),
        job.name,
        lambda: make_sink(manager, job.name, config),
        config.config.trainer,
        back_to=job.back_to,
        watched=lambda call: _watched(call, report_to),
    )
    end: LogEnd | None = None
    failures = 0
    while True:
        try:
            for _ in delivery.catch_up(ended=end is not None):
                if failures:
                    report_to(FINE)
                failures = 0
            if end is not None:
                delivery.close(end)
                report_to(CLOSED)
                return
            pause = POLL_S
        except Exception as error:
            import traceback

            traceback.print_exc()
            failures += 1
            report_to(FAILED, _told(error))
            if end is not None and failures >= LAST_TRIES:
                raise
            pause = min(2.0 ** (failures - 1), RETRY_S) if end is None else 1.0
        with contextlib.suppress(queue.Empty):
            end = ends.get(timeout=pause)
            failures = 0


def _listen() -> "queue.Queue[LogEnd]":
    """The word that the run ended, once it is there; the process ends if the run dies before."""
    ends: queue.Queue[LogEnd] = queue.Queue()

    def read() -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(3)
        ends.put(LogEnd(**json.loads(line)))
        if not sys.stdin.readline():
            os._exit(3)

    threading.Thread(target=read, daemon=True).start()
    return ends


@contextlib.contextmanager
def _watched(call: str, report: Report) -> Iterator[None]:
    """Say it if the call does not return, and in the end give up."""

    def slow() -> None:
        report(SLOW, f"its call '{call}' has not returned for {SLOW_S:.0f} s")

    def stuck() -> None:
        os._exit(4)

    timers = [threading.Timer(SLOW_S, slow), threading.Timer(STUCK_S, stuck)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _keep_output(path: Path, known: tuple[str, ...]) -> threading.Thread:
    """Append what this process and its children print to a file, line by line, secrets masked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source, sink = os.pipe()
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)

    def copy() -> None:
        with os.fdopen(source, errors="replace") as lines, path.open("a", buffering=1) as file:
            for line in lines:
                file.write(mask_secrets(line, known))

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _told(error: Exception) -> str:
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0]}"
