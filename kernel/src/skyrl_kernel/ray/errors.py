"""What Ray says of a process, in a line that names the process, its machine and the cause.

An exception of a plugin was named where it was raised (`skyrl_kernel.ray.member`), and comes
through as it is. The rest is told here: an error that does not say whose it is, a process that
died, a machine that is gone, a disk that is full.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from skyrl_kernel.errors import ConfigError, RankError, RunError, SkyrlError
from skyrl_kernel.ray.logs import last_words

_MOST_CHARACTERS = 300
"""Of a process's last words."""
_NODE_GONE = "its node has died"
_WHY_GONE = re.compile(r"node was (?:terminated|preempted)[^:]*: *(.*)")
_ENDED = "Worker exit type: SYSTEM_ERROR"
_GAVE_UP = re.compile(r"Watchdog caught collective operation timeout.*")
"""What torch prints before it ends a process whose partner in NCCL did not come."""
_LAST_BYTES = 2**20
"""Of what a process printed, in which that is looked for: the stacks of all threads follow it."""


class ProcessDied(RankError):
    """A process of the run, or its machine, is gone; nothing it says can be the cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One of the run's, as messages name it."""

    name: str
    """Such as ``trainer rank 1``."""
    where: str = ""
    """Its machine, such as ``gpu-3 (10.0.0.3)``; empty until it has said so."""
    output: Path | None = None
    """What it printed; see `skyrl_kernel.ray.logs`."""
    earlier: int = field(init=False, compare=False)
    """Bytes of that which were there before, of the run that this one goes on with."""

    def __post_init__(self) -> None:
        there = self.output.stat().st_size if self.output and self.output.exists() else 0
        object.__setattr__(self, "earlier", there)

    @property
    def kind(self) -> str:
        """Such as ``trainer rank``: those of one kind wait for each other."""
        return self.name.rpartition(" ")[0]

    def __str__(self) -> str:
        return f"{self.name} on {self.where}" if self.where else self.name


def as_run_error(error: BaseException, process: Process) -> BaseException:
    """What an error of `ray.get`, or of awaiting a reference, means for the run.

    Args:
        error: Raised by Ray.
        process: Which was asked.
    """
    if isinstance(error, RayTaskError):
        return _raised(error, process)
    if isinstance(error, RayActorError | OutOfMemoryError):
        if _ENDED in str(error) and (gave_up := _gave_up(process)):
            return RankError(
                f"{process} waited for another in vain, and torch ended it: {gave_up!r}; all that it "
                f"printed is in {process.output}"
            )
        return ProcessDied(f"{process} has died: {_why(error)}{_traces(process)}")
    if isinstance(error, RayError) and not isinstance(error, GetTimeoutError):
        return RunError(f"{process} gave no answer: {type(error).__name__}: {_one_line(error)}")
    return error


def _raised(error: RayTaskError, process: Process) -> BaseException:
    cause = error.cause
    if isinstance(cause, SkyrlError):
        return _placed(cause, process)
    if isinstance(cause, OSError) and cause.errno is not None:
        # A full disk is told from its number.
        return OSError(cause.errno, f"{cause.strerror} ({process})", cause.filename)
    if isinstance(cause, Exception):
        return RunError(f"{process} failed: {type(cause).__name__}: {cause}")
    return RunError(f"{process} failed: {str(error).strip().splitlines()[-1]}")


def _placed(error: SkyrlError, process: Process) -> SkyrlError:
    """With its process, and so its machine; a config is wrong in all, and some say theirs themselves."""
    is_message_alone = len(error.args) == 1 and not isinstance(error, ConfigError)
    if is_message_alone and process.name not in str(error):
        error.args = (f"{process}: {error}",)
    return error


def _why(error: BaseException) -> str:
    """Ray's reason without its ids and its list of guesses."""
    text = _one_line(error)
    if _NODE_GONE in text:
        found = _WHY_GONE.search(text)
        return f"its node is gone ({found[1]})" if found else "its node is gone"
    if isinstance(error, OutOfMemoryError) or "memory usage threshold" in text:
        return f"its node ran out of memory, and Ray ended it: {text}"
    if _ENDED in text:
        return (
            "its process ended without a word to Ray, as after kill -9, when the system has no memory "
            "left (dmesg says so), or in a crash"
        )
    if not isinstance(error, ActorDiedError):
        return (
            "Ray does not reach it any more, as when Ray's own process on its machine (the raylet) has "
            f"ended, or the network there ({text})"
        )
    return text


def _traces(process: Process) -> str:
    said = last_words(process.output)[:_MOST_CHARACTERS]
    if process.output is None or not said:
        return ""
    return f". The last it printed: {said!r}; all of it is in {process.output}"


def _gave_up(process: Process) -> str:
    """What it said when it gave up waiting; empty if that is not why it ended."""
    if process.output is None or not process.output.exists():
        return ""
    with process.output.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(process.earlier, end - _LAST_BYTES))
        found = _GAVE_UP.search(file.read().decode(errors="replace"))
    return found[0][:_MOST_CHARACTERS] if found else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


IS_GONE, OWN, FOLLOWS = range(3)
"""Gravity of an error: a process is gone; it failed by itself; it only lost a partner."""

_OF_A_PARTNER = (
    "connection closed by peer",
    "connection reset",
    "timed out waiting",
    "socket timeout",
    "watchdog caught collective operation timeout",
)
"""What gloo and NCCL say to a rank whose partner is gone."""


def gravity(error: BaseException) -> int:
    """How near to the cause an error is: of several for one call, the least is told."""
    if isinstance(error, ProcessDied):
        return IS_GONE
    if isinstance(error, RankError):
        return FOLLOWS
    text = str(error).lower()
    return FOLLOWS if any(sign in text for sign in _OF_A_PARTNER) else OWN


_FOUND_BY = re.compile(r"\brank (\d+) of \d+\b")
"""In what all ranks raise together: which of them found it."""


def is_of_another(error: BaseException, process: Process) -> bool:
    """True of an error that a process only raises along with the one that found it."""
    found = _FOUND_BY.search(str(error))
    return found is not None and not process.name.endswith(f" {found[1]}")
