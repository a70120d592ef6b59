"""Stops a run when it has trained for so long: control B gets the seconds that RL had.

Evaluations, checkpoints and start-up are not counted.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field

from skyrl_kernel.config import Section
from skyrl_kernel.errors import StopRun
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RunInfo, StepInfo


class TimeLimit(Section):
    """``controls.time_limit``."""

    seconds: Annotated[float, Field(gt=0)]
    """Seconds of ``timing/step``, summed over steps."""


class _Watch:
    limit_s = float("inf")
    used_s = 0.0


@hookimpl
def config_sections() -> Mapping[str, type[BaseModel]]:
    """``controls.time_limit``."""
    return {"controls.time_limit": TimeLimit}


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Start counting."""
    _Watch.limit_s = float(run.config["controls"]["time_limit"]["seconds"])
    _Watch.used_s = 0.0


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """Stop the run after the step in which the time is up."""
    _Watch.used_s += step.metrics["timing/step"]
    if _Watch.used_s >= _Watch.limit_s:
        raise StopRun(f"{_Watch.used_s:.1f} s of training")
