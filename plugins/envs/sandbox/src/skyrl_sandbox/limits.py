"""What a program may use, and what came of it."""

from dataclasses import dataclass
from enum import StrEnum


class Limit(StrEnum):
    """Which limit ended a program."""

    WALL = "wall"
    """It was still there after `Limits.wall_s`."""
    CPU = "cpu"
    """Its processes together, or one alone, used `Limits.cpu_s`."""
    MEMORY = "memory"
    """Its processes together held more than `Limits.memory_mb`."""
    OUTPUT = "output"
    """It wrote more than `Limits.output_kb` to one of its two outputs."""
    FILES = "files"
    """It made more files than `Limits.num_files`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program and everything that it starts may use together, unless a field says otherwise.

    Example:
        >>> Limits(wall_s=2.0, memory_mb=256).processes
        32
    """

    wall_s: float = 10.0
    """Seconds on the clock; for a `Worker`, of each call where the call names none."""
    cpu_s: float | None = 10.0
    """Seconds of processor time; None: as many as there are."""
    memory_mb: int = 1024
    """MiB of memory in use; also the address space of each process, so that an allocation
    beyond it fails inside the program before it costs the machine anything."""
    processes: int = 32
    """Processes and threads at once. Starting one more fails inside the program."""
    output_kb: int = 1024
    """KiB of standard output, and as many of standard error."""
    files_mb: int = 16
    """MiB in /tmp, and as many in /dev/shm; both are memory and are gone afterwards."""
    num_files: int = 4096
    """Files and folders in each of the two."""
    open_files: int = 64
    """Open files of one process."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} lets nothing run; it must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    r"""How a program ended.

    Example:
        >>> Result(exit_code=0, stdout="42\n", stderr="", limit=None, wall_s=0.02).is_fine
        True
    """

    exit_code: int | None
    """As a shell tells it: 128 + n after signal n; None if a limit ended it."""
    stdout: str
    """What it wrote, bytes that are no UTF-8 replaced by U+FFFD."""
    stderr: str
    """Likewise."""
    limit: Limit | None
    """What ended it, if a limit did. An allocation, a process or a file that was refused
    inside the program is not told here: the program got an error and went on."""
    wall_s: float
    """Seconds from its start to its end."""

    @property
    def is_fine(self) -> bool:
        """True if it ended by itself with exit code 0."""
        return self.exit_code == 0

    @property
    def truncated(self) -> bool:
        """True if it wrote more than `stdout` and `stderr` hold."""
        return self.limit is Limit.OUTPUT
