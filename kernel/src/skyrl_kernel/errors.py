"""Every error that the kernel raises, and what each means for the process.

To add one: derive from `SkyrlError` and from the built-in it specialises, keep
the message in the house order (what was asked; what was found; what exists;
what to do), and pass everything through ``__init__`` positionally so that it
survives pickling: errors cross process boundaries.

Plugin authors raise ordinary Python errors; the kernel adds who and where.
"""

import errno
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any


class SkyrlError(Exception):
    """Base of all errors whose message is written for the user.

    The command line prints the message without a traceback and exits with
    ``exit_code``.
    """

    exit_code = 1


class UsageError(SkyrlError, ValueError):
    """What the user asked for cannot be done as asked; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A config key or value is unknown, mistyped, contradictory or owned by nobody selected."""


class PluginSelectionError(UsageError, LookupError):
    """A plugin was asked for that is not installed, or is claimed twice."""


class PluginLoadError(UsageError, ImportError):
    """A selected plugin could not be imported, or does not fit this kernel."""


class HookError(UsageError, TypeError):
    """A plugin implements a hook wrongly: unknown name, wrong arguments, wrong colour."""


class CapabilityError(UsageError):
    """The selected plugins do not fit together: somebody needs what nobody offers."""


class DataError(UsageError):
    """A data set is missing, unreadable or has the wrong schema; names file, row and column."""


class ModelError(UsageError):
    """A model path is no model, or its tokenizer cannot format a chat."""


class ResumeError(UsageError):
    """A run folder cannot be continued by this command."""


class RunError(SkyrlError, RuntimeError):
    """The run started and could not go on; what it had finished is kept."""


class CheckpointError(RunError):
    """A checkpoint is damaged or incomplete."""


class NonFiniteError(RunError, ArithmeticError):
    """A NaN or infinity reached the trainer; names the trajectory and the quantity."""


class WeightSyncError(RunError):
    """The engine does not hold the weights that the trainer sent."""


class LogprobsDiffError(RunError):
    """Engine and trainer differ by more than ``trainer.logprobs_diff.stop_above`` on what is trained on."""


class RankError(RunError):
    """A process of several that a run has failed, ended or hangs; names it."""


class FailureBudgetError(RunError):
    """More trajectories failed than ``trainer.max_failed_frac`` allows.

    Args:
        message: How many, of which kinds, and the most common.
        failures: `skyrl_kernel.records.Failure` of each, to be written down.
    """

    def __init__(self, message: str, failures: Sequence[Any] = ()) -> None:
        super().__init__(message, failures)
        self.message = message
        self.failures = failures

    def __str__(self) -> str:
        return self.message


class StopRun(SkyrlError):
    """Raised by an observer to end the run cleanly after the current step."""

    exit_code = 0


class FailureKind(StrEnum):
    """Why a trajectory was lost, by the boundary that it crossed."""

    TIMEOUT = "timeout"
    """A call did not return within its deadline."""
    INFRASTRUCTURE = "infrastructure"
    """The engine, a process or a service failed; the task itself was not judged."""
    TASK = "task"
    """The environment or reward code raised, or returned what its contract forbids."""


class TrajectoryError(SkyrlError):
    """One trajectory is lost. A bad rollout is data, not a crash: it is counted and typed.

    An env raises it where it knows the kind better than the kernel: with
    `FailureKind.INFRASTRUCTURE` if a service that it asks does not answer.

    Args:
        kind: The boundary that failed.
        message: What happened, naming the env or engine.
        plugin: Name of the plugin whose code was running, if known.
    """

    def __init__(self, kind: FailureKind, message: str, plugin: str | None = None) -> None:
        super().__init__(kind, message, plugin)
        self.kind = kind
        self.message = message
        self.plugin = plugin

    def __str__(self) -> str:
        return self.message


class PluginError(RunError):
    """An exception inside a plugin, with everything needed to find its owner in the first line.

    Args:
        plugin: Entry-point name.
        distribution: Name and version of the distribution, such as ``skyrl-grpo 0.1.0``.
        hook: The hook, or the stage, whose code was running.
        step: The training step, 0 before the first, or None where the run has not begun.
        process: Which process, such as ``controller``.
        cause: ``TypeName: message`` of the original exception.
    """

    def __init__(
        self,
        plugin: str,
        distribution: str,
        hook: str,
        step: int | None,
        process: str,
        cause: str,
    ) -> None:
        super().__init__(plugin, distribution, hook, step, process, cause)
        self.plugin = plugin
        self.distribution = distribution
        self.hook = hook
        self.step = step
        self.process = process
        self.cause = cause

    def in_step(self, step: int) -> "PluginError":
        """The same, of a step: another process that raises does not know which it is."""
        if self.step is not None:
            return self
        told = PluginError(
            self.plugin, self.distribution, self.hook, step, self.process, self.cause
        )
        told.__cause__ = self.__cause__
        return told

    def __str__(self) -> str:
        where = {None: "start-up", 0: "before the first step"}.get(self.step, f"step {self.step}")
        return (
            f"plugin '{self.plugin}' ({self.distribution}) failed in hook '{self.hook}', "
            f"{where}, process {self.process}: {self.cause}"
        )


_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as safetensors, tell the number in an exception of their own."""


def is_disk_full(error: BaseException) -> bool:
    """True if ``error`` says that no more can be written (no space, quota, file size limit)."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := _RUST_ERROR.search(str(error))):
        number = int(told[1])
    return number in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
