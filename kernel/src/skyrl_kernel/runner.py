"""A run from its plan to its end, whichever end that is."""

import asyncio
import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from skyrl_kernel import event_loop
from skyrl_kernel.assemble import make_session
from skyrl_kernel.errors import (
    CapabilityError,
    FailureBudgetError,
    RankError,
    RunError,
    StopRun,
    is_disk_full,
)
from skyrl_kernel.feed import Feed, check_sinks
from skyrl_kernel.logs import RunLogs
from skyrl_kernel.loop import train
from skyrl_kernel.masking import mask_secrets
from skyrl_kernel.plan import Plan, make_plan
from skyrl_kernel.prepared import prepare
from skyrl_kernel.progress import Progress
from skyrl_kernel.protocols import RunEnd, RunInfo, Runtime
from skyrl_kernel.resume import Start, find_start, hold, make_room, undo
from skyrl_kernel.run import RunFolder, set_aside_later
from skyrl_kernel.session import Session
from skyrl_kernel.slots import LOGGERS

Status = Literal["finished", "stopped", "already finished"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The outcome of a run that did not fail."""

    status: Status
    folder: Path
    step: int
    """Last finished step."""
    first_eval: Mapping[str, float] = field(default_factory=dict)
    """``eval/…`` before training; empty if nothing was evaluated then."""
    last_eval: Mapping[str, float] = field(default_factory=dict)
    """``eval/…`` after the last evaluation."""
    export: Path | None = None
    """Hugging Face directory of the trained policy."""


def run(
    plugins: Sequence[str] = (),
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    *,
    progress: Progress | None = None,
) -> RunResult:
    """Plan a run and carry it out: ``skyrl run`` as a function.

    Args:
        plugins: ``--plugin`` names.
        files: ``--config`` files.
        overrides: ``key=value`` words.
        progress: Where to show it; default: the terminal.

    Raises:
        UsageError: Nothing was started; says why and what to do.
        RunError: The run started and could not go on; what it finished is kept.
        KeyboardInterrupt: Ctrl-C; what it finished is kept.
    """
    return carry_out(make_plan(plugins, files, overrides), progress=progress)


def carry_out(plan: Plan, *, progress: Progress | None = None) -> RunResult:
    """Do what the plan says.

    Raises:
        UsageError: Something that it needs is not here.
    """
    if plan.missing:
        raise CapabilityError("\n".join(plan.missing))
    config = plan.tree.trainer
    folder = RunFolder.of(config)
    path = folder.path
    check_sinks(plan)
    prepared = prepare(plan)
    total_steps = prepared.order.total_steps
    moved = make_room(folder, config)
    with hold(folder) as folder:
        try:
            start = find_start(
                folder, config, plan.config.tree, prepared.lock, _logger_sections(plan)
            )
            step = int(start.state["step"]) if start.state else 0
            progress = progress or Progress(
                config.run_name, total_steps, start_step=step, lines="console" not in config.loggers
            )
            with progress, RunLogs(folder.logs, console=progress.console) as logs:
                if start.checkpoint is not None and step >= total_steps:
                    for note in start.notes:
                        progress.warning(note)
                    progress.message(
                        f"{path} is finished: its newest checkpoint is of step {step} of {total_steps}, "
                        "so nothing is trained. Start another with trainer.run_name=NAME, go on with "
                        "more trainer.epochs (or trainer.max_training_steps), or move this one aside "
                        "with trainer.resume_mode=none"
                    )
                    return RunResult(status="already finished", folder=path, step=step)
                with _running(plan) as runtime:
                    session = make_session(
                        prepared, folder=folder, progress=progress, runtime=runtime, start=start
                    )
                    session.feed = Feed(plan, folder, progress.message)
                    logs.adopt_libraries()  # those that were imported just now
                    _begin(session, start)
                    notes = [f"{path} held another run; it is now {moved}"] if moved else []
                    notes += [*plan.notes, *prepared.data.notes, *start.notes]
                    return _drive(session, notes)
        except BaseException:
            undo(folder, moved)
            raise


@contextlib.contextmanager
def _running(plan: Plan) -> Iterator[Runtime]:
    """The runtime, ended whatever happens."""
    name = plan.tree.trainer.runtime
    runtime: Runtime = plan.manager.make("make_runtime", name, name=name, settings=plan.config)
    try:
        yield runtime
    finally:
        runtime.close()


def _begin(session: Session, start: Start) -> None:
    """Write the first files, and take away what is later than where the run begins."""
    folder, config = session.folder, session.plan.config
    done = session.first_step - 1
    folder.write_config(config.tree, config.origins)
    folder.write_plugins(list(session.lock))
    folder.truncate_after(done if start.checkpoint else -1)
    set_aside_later(folder.checkpoints, done)


def _logger_sections(plan: Plan) -> list[str]:
    """Config sections of loggers, which change nothing that a step computes."""
    return [
        section
        for entry in plan.manager.catalog
        if entry.group == LOGGERS
        for section in entry.manifest.config
    ]


def _drive(session: Session, notes: Sequence[str]) -> RunResult:
    """Run the loop; tell the observers how it ended, whatever happened."""
    config = session.config
    session.observe(
        "on_run_start",
        run=RunInfo(
            name=config.run_name,
            project=config.project_name,
            folder=session.folder.path,
            total_steps=session.total_steps,
            start_step=session.first_step - 1,
            config=mask_secrets(session.plan.config.tree),
            plugins=[
                f"{one['name']} {one['distribution']} {one['version']}" for one in session.lock
            ],
        ),
    )
    for note in notes:
        session.progress.warning(note)
    if session.first_step > 1:
        session.progress.message(
            f"going on after step {session.first_step - 1} of {session.total_steps}"
        )
    status: Literal["finished", "stopped", "interrupted", "failed"] = "failed"
    message = ""
    step = session.first_step - 1
    try:
        step = event_loop.run(_train_and_close(session), config.close_timeout_s)
        status, message = "finished", f"{step} of {session.total_steps} steps"
    except StopRun as stop:
        status, message, step = "stopped", str(stop), session.saved_step
    except (KeyboardInterrupt, asyncio.CancelledError):
        status, step = "interrupted", session.saved_step
        message = f"interrupted; {_kept(session)}"
        raise KeyboardInterrupt(message) from None
    except BaseException as error:
        step = session.saved_step
        message = str(error)
        if is_disk_full(error) or isinstance(error, RankError):
            message = f"{error}; {_kept(session)}"
            error.add_note(_kept(session))
        raise
    finally:
        session.observe(
            "on_run_end",
            end=RunEnd(step=step, status=status, message=message, warnings=tuple(session.warnings)),
        )
    exported = session.folder.export / f"global_step_{step}"
    return RunResult(
        status=status,
        folder=session.folder.path,
        step=step,
        first_eval=session.first_eval,
        last_eval=session.eval_numbers,
        export=exported if exported.is_dir() else None,
    )


def _kept(session: Session) -> str:
    if session.saved_step:
        return f"the same command goes on after step {session.saved_step}"
    return "no checkpoint was written yet, so the same command begins anew"


async def _train_and_close(session: Session) -> int:
    # Start-up left a million objects that live as long as the run (torch, the model classes); every
    # full collection would look at each of them again. Trajectories hold no cycles, so the youngest
    # need not be looked at for every few of them.
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(20_000, *thresholds[1:])
    try:
        step = await train(session)
    except BaseException as error:
        if isinstance(error, FailureBudgetError):
            session.report_failures(error.failures)
        for problem in await session.close():
            session.warn(problem)
        raise
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    problems = await session.close()
    if problems:
        raise RunError(
            f"all {step} steps are done and what they left is whole, but {'; '.join(problems)}"
        )
    return step
