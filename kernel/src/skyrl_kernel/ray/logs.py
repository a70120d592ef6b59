"""What the processes of a run log and print: two files each, in ``logs/`` of the run's folder.

``trainer_rank_0.jsonl`` is to this process what ``log.jsonl`` is to the controller, with the
process's name in every line. ``trainer_rank_0.out`` has what it printed, libraries in C++ and the
last words of a crash included. Both are appended to when a run goes on. Secrets are masked in both,
but in what is not written by Python: a library in C++, another program.

Whatever runs on another machine writes there as well, so the folder must be on a file system that
all of them share; so must checkpoints, of which each rank writes its part.
"""

import faulthandler
import io
import os
import sys
from pathlib import Path

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.logs import RunLogs, get_logger
from skyrl_kernel.masking import known_secrets, mask_secrets

FOLDER = "logs"
LAST_BYTES = 4096
"""Of what a process printed, in which its last words are looked for."""

log = get_logger(__name__)


def output_file(folder: Path, name: str) -> Path:
    """What the process of that name prints.

    Example:
        >>> output_file(Path("runs/demo"), "trainer rank 0").as_posix()
        'runs/demo/logs/trainer_rank_0.out'
    """
    return folder / FOLDER / f"{name.replace(' ', '_')}.out"


def write_to(folder: Path, name: str, where: str) -> None:
    """Send all that this process logs and prints into the run's folder, until it ends.

    Args:
        folder: The run's, made by the controller.
        name: Of this process, such as ``trainer rank 0``.
        where: Its machine.

    Raises:
        CapabilityError: The folder is not here: this machine has another file system.
    """
    if not folder.is_dir():
        raise CapabilityError(
            f"{name} on {where} finds no folder {folder}, which the controller has made: the folder of "
            "a run must be on a file system that all nodes share. Set trainer.ckpt_path (and "
            "trainer.log_path, if it is set) to such a place"
        )
    output = output_file(folder, name)
    output.parent.mkdir(exist_ok=True)
    _redirect(output)
    RunLogs(output.parent, file=f"{output.stem}.jsonl", fields={"process": name}).__enter__()
    sys.stdout, sys.stderr = Masked(1), Masked(2)  # libraries that log to those before are adopted
    log.info("begun", pid=os.getpid(), node=where, python=sys.executable, folder=os.getcwd())


def _redirect(output: Path) -> None:
    """Let what is printed go there, and what a crash leaves."""
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(printed, number)
    os.close(printed)
    faulthandler.enable(file=2)


class Masked(io.TextIOWrapper):
    """What Python writes to a file descriptor, line by line as it comes, without secrets.

    In this process, so that nothing is lost when it is killed.

    Args:
        number: Of the file descriptor, which stays open when this is closed.
    """

    def __init__(self, number: int) -> None:
        raw = io.FileIO(number, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        self._known = known_secrets()
        self._begun = ""
        """Of the last line."""

    def write(self, text: str) -> int:
        """Write whole lines; the rest of ``text`` waits for the end of its line, or for `flush`."""
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            super().write(self._mask(lines + newline))
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        begun, self._begun = self._begun, ""
        if begun:
            super().write(self._mask(begun))
        super().flush()

    def _mask(self, text: str) -> str:
        masked: str = mask_secrets(text, self._known)
        return masked


def last_words(output: Path | None) -> str:
    """The last line that a process printed; empty if it printed nothing or the file is not here."""
    try:
        if output is None:
            return ""
        with output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
