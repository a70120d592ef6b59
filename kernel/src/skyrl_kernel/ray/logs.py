"""What the processes of a run log and print: two files each, in ``logs/`` of the run's folder.

``trainer_rank_0.jsonl`` is to this process what ``log.jsonl`` is to the controller, with the
process's name in every line. ``trainer_rank_0.out`` has what it printed, libraries in C++ and the
last words of a crash included. Both are appended to when a run goes on.

Whatever runs on another machine writes there as well, so the folder must be on a file system that
all of them share; so must checkpoints, of which each rank writes its part.
"""

import faulthandler
import os
import sys
from pathlib import Path

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.logs import RunLogs, get_logger

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
