"""Ends a lap: observers are called by group and name, so this one comes after the loggers."""

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import StepInfo
from skyrl_stopwatch import watch


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """A lap."""
    watch.mark("loggers_s")
    watch.lap()
