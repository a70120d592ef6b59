"""Writes every event of a run as one line of JSON, for programs that follow a run.

Events: ``run_start``, ``step``, ``eval``, ``checkpoint``, ``failure``,
``run_end``; each has ``event`` and ``time``. The file is only ever appended to:
a run that was killed and continued shows its second ``run_start`` and the steps
that were done again. The curve without repetition is ``metrics.jsonl``.
"""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from skyrl_kernel import progress
from skyrl_kernel.config.section import Section
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.json_lines import append_lines, dump_line
from skyrl_kernel.protocols import EvalInfo, RunEnd, RunInfo, StepInfo
from skyrl_kernel.records import Failure

_STDOUT = 1
"""File descriptor: the live display stands in for ``sys.stdout`` while it is shown."""


class JsonlConfig(Section):
    """``trainer.jsonl``: where events go."""

    path: str | None = None
    """A file to append to; default: ``events.jsonl`` in the run folder. ``-``: standard output,
    and what is for people goes to standard error from then on."""


_write: Callable[[dict[str, Any]], None] | None = None


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """This plugin's section."""
    return {"trainer.jsonl": JsonlConfig}


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Open the run's events with what was asked for."""
    global _write
    _write = _writer(run)
    _event(
        "run_start",
        name=run.name,
        project=run.project,
        folder=run.folder,
        start_step=run.start_step,
        total_steps=run.total_steps,
        plugins=run.plugins,
        config=run.config,
    )


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """The step's metrics; its trajectories are in the run folder."""
    _event("step", step=step.step, total_steps=step.total_steps, metrics=step.metrics)


@hookimpl
def on_eval_end(evaluation: EvalInfo) -> None:
    """The evaluation's metrics."""
    _event("eval", step=evaluation.step, metrics=evaluation.metrics)


@hookimpl
def on_checkpoint(step: int, folder: Path) -> None:
    """Where the checkpoint is."""
    _event("checkpoint", step=step, folder=folder)


@hookimpl
def on_failure(failure: Failure) -> None:
    """The lost trajectory, as in ``failures.jsonl``."""
    _event(
        "failure",
        step=failure.step,
        uid=failure.uid,
        sample=failure.sample,
        kind=failure.kind,
        plugin=failure.plugin,
        message=failure.message,
    )


@hookimpl
def on_run_end(end: RunEnd) -> None:
    """How it ended."""
    _event("run_end", step=end.step, status=end.status, message=end.message, warnings=end.warnings)


def _event(event: str, /, **fields: Any) -> None:
    """Write one event; before the run's start there is nowhere to write to."""
    if _write is not None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        _write({"event": event, "time": now, **fields})


def _writer(run: RunInfo) -> Callable[[dict[str, Any]], None]:
    section = run.config.get("trainer", {}).get("jsonl") or {}
    target = JsonlConfig.model_validate(section).path
    if target == "-":
        progress.use_stderr()
        return _write_stdout
    path = run.folder / "events.jsonl" if target is None else Path(target).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return lambda event: append_lines(path, [event])


def _write_stdout(event: dict[str, Any]) -> None:
    data = dump_line(event).encode()
    while data:
        data = data[os.write(_STDOUT, data) :]
